import {attempt, byId, signIn, start} from "./common.js";

start();
byId("login").onsubmit = event => {
  event.preventDefault();
  attempt(async () => {
    await signIn(byId("token").value);
    location.assign("/");
  });
};
