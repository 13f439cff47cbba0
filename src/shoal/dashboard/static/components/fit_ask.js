// Asking whether something fits, again and again while it is typed: after a short rest, and only the last answer counts.

import { ApiError, call } from "../api.js";
import { useEffect, useRef, useSignal } from "../lib.js";

const REST = 300;

/** What `POST fit` says to a body, asked when its text changes or `again` does; "" asks nothing.
 * @param {string} body @param {unknown} [again] */
export function useFit(body, again) {
  const answer = useSignal(/** @type {FitAnswer | null} */ (null));
  const error = useSignal("");
  const asking = useSignal(false);
  const turn = useRef(0);
  useEffect(() => {
    const mine = ++turn.current;
    asking.value = Boolean(body);
    if (!body) {
      answer.value = null;
      error.value = "";
      return undefined;
    }
    const timer = setTimeout(async () => {
      try {
        const { data } = await call("POST", "fit", JSON.parse(body));
        if (mine !== turn.current) return;
        answer.value = data;
        error.value = "";
      } catch (fault) {
        if (!(fault instanceof ApiError)) throw fault;
        if (mine === turn.current) error.value = fault.message;
      }
      if (mine === turn.current) asking.value = false;
    }, REST);
    return () => clearTimeout(timer);
  }, [body, again]);
  return { answer, error, asking };
}
