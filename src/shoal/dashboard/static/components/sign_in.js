// The form over the page where Shoal asks who is there, and who it is in the header. What is open behind it stays.

import { say } from "../actions.js";
import { ApiError } from "../api.js";
import { html, useEffect, useRef, useSignal } from "../lib.js";
import { style } from "../style.js";
import { session, signIn, signOut, wanted } from "../session.js";
import { Command } from "./small.js";

export function SignIn() {
  return wanted.value ? html`<${Form} />` : null;
}

function Form() {
  const dialog = useRef(/** @type {HTMLDialogElement | null} */ (null));
  const password = useRef(/** @type {HTMLInputElement | null} */ (null));
  const error = useSignal("");
  const busy = useSignal(false);
  const open = () => {
    if (dialog.current?.isConnected && !dialog.current.open) dialog.current.showModal();
  };
  useEffect(() => {
    style("sign_in.css").then(open, open); // it does without
  }, []);
  const submit = async (/** @type {any} */ event) => {
    event.preventDefault();
    if (busy.value) return;
    const given = new FormData(event.target);
    busy.value = true;
    error.value = "";
    try {
      await signIn(String(given.get("name")), String(given.get("password")));
    } catch (fault) {
      if (!(fault instanceof ApiError)) throw fault;
      error.value = fault.message;
      password.current?.focus();
      password.current?.select();
    } finally {
      busy.value = false;
    }
  };
  return html`
    <dialog ref=${dialog} class="sign-in" aria-labelledby="sign-in-title" onCancel=${(/** @type {Event} */ event) => event.preventDefault()} onClose=${open}>
      <form onSubmit=${submit}>
        <h2 id="sign-in-title"><img src="static/icon.svg" alt="" width="28" height="28" />Sign in to Shoal</h2>
        <label for="sign-in-name">Name</label>
        <input id="sign-in-name" name="name" autocomplete="username" autocapitalize="none" spellcheck=${false} maxlength="100" required autofocus />
        <label for="sign-in-password">Password</label>
        <input id="sign-in-password" ref=${password} name="password" type="password" autocomplete="current-password" maxlength="1024" required />
        <p class="failure" role="alert" hidden=${!error.value}>${error.value}</p>
        <div class="buttons"><button class="primary" disabled=${busy.value}>${busy.value ? "Signing in…" : "Sign in"}</button></div>
        <div class="soft lost"><p>Password lost? On the machine that Shoal runs on:</p><${Command} text="shoal users set NAME" /></div>
      </form>
    </dialog>
  `;
}

/** Who is signed in, if anybody had to. */
export function Who() {
  const { name, role } = session.value;
  useEffect(() => {
    if (name) void style("sign_in.css").catch(() => null);
  }, [name]);
  if (!name) return null;
  const leave = async () => {
    try {
      await signOut();
    } catch (fault) {
      if (!(fault instanceof ApiError)) throw fault;
      say("error", fault.message);
    }
  };
  return html`
    <p class="signed-in"><span class="clip" title=${name}><bdi>${name}</bdi></span>${role === "read-only" && html`<span class="badge">read-only</span>`}
      <button type="button" class="quiet" onClick=${() => void leave()}>Sign out</button></p>
  `;
}
