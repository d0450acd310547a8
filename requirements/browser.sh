#!/usr/bin/env bash
# Installs Chromium, with which the tests look at the inspection page. Debian and Ubuntu; elsewhere install it by hand.
# Does nothing where a Chromium is there already, or where PICKGLASS_CHROMIUM names one.
set -euo pipefail
if [ -n "${PICKGLASS_CHROMIUM:-}" ] || command -v chromium >/dev/null || command -v chromium-browser >/dev/null; then
  exit 0
fi
as_root=""
if [ "$(id -u)" -ne 0 ]; then as_root="sudo"; fi
$as_root apt-get update -qq
DEBIAN_FRONTEND=noninteractive $as_root apt-get install -qq --yes --no-install-recommends chromium fonts-dejavu-core
