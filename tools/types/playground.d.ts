// What the playground keeps of a session. Times in milliseconds, `askedAt` and the like since 1970.

interface PlayImage { name: string; url: string }
interface PlayTurn { id: string; text: string; images: PlayImage[] }
interface PlayAnswer {
  model: string;
  /** `cut`: it broke off; `refused`: there is nothing of it. */
  state: "waiting" | "answering" | "done" | "stopped" | "cut" | "refused";
  text: string; reasoning: string; finish: string | null;
  /** Why it ended before its end, or what was wrong with it. */
  why: string;
  /** What it waits for, in the relay's words. */
  waits: string;
  askedAt: number; first: number | null; last: number | null; held: number | null;
  pieces: number; prompt: number | null; completion: number | null; queue: number | null; wake: number | null;
}
type PlayFields = Record<string, string>;
interface PlayColumn {
  id: string; model: string; muted: boolean; fields: PlayFields; answers: Record<string, PlayAnswer>;
}
interface PlaySession {
  id: string; title: string; createdAt: number; changedAt: number;
  fields: PlayFields; turns: PlayTurn[]; columns: PlayColumn[];
  draft: string; images: PlayImage[];
  /** The turn that is written anew in the draft, and what stood there before. */
  editing: { turn: string; draft: string; images: PlayImage[] } | null;
}
/** A line of the list of sessions; `size` in characters. */
interface PlayLine { id: string; title: string; changedAt: number; turns: number; size: number }
type PlayEvent = { data: string } | { comment: string };
interface MarkElement { tag: string; kids: MarkNode[]; href?: string; start?: number; align?: string; word?: string }
type MarkNode = string | MarkElement;
interface ModelSpec { args: string[]; on_request: boolean }
