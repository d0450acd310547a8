import {attempt, byId, signIn, start} from "./common.js";

start();
const enter = token =>
  attempt(async () => {
    if (await signIn(token)) location.assign("/");
  });
byId("login").onsubmit = event => {
  event.preventDefault();
  enter(byId("token").value);
};
enter(null); // whoever came by a link of another site has the token, but no cookie yet
