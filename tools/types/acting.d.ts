// What adding, moving and steering models read of the admin API. Sizes in bytes, times in Unix seconds.

interface ModelSpec {
  devices: "auto" | string[]; tensor_parallel: number; floor: number; ceiling: number | null; elastic: string;
  kv_cache_memory: number | null;
}

type Verdict = "loaded" | "fits" | "fits_if_others_give_way" | "unknown" | "does_not_fit";
interface FitPart { what: string; bytes: number }
interface DeviceFit {
  device: string; verdict: Verdict; needed: number | null; free: number; size: number; message: string;
  parts: FitPart[]; sleep: string[]; unload: string[]; measured: boolean;
}
interface NeedsView {
  weights: number | null; overhead: number; kv: number; total: number | null; elastic: boolean; measured: boolean;
  kv_per_token: number | null; kv_of_longest: number | null; longest: number | null; concurrency: number | null;
  notes: string[];
}
interface ModelFit { name: string; verdict: Verdict; message: string; on: string[]; needs: NeedsView | null; devices: DeviceFit[] }
interface Collision {
  device: string; budget: number; unknown: string[]; message: string;
  peaks: { expected: number; probability: number } | null;
}
interface FitAnswer { models: ModelFit[]; collisions: Collision[] }

interface FolderView { name: string; path: string | null; source: string | null; weights: string | null; problem: string }
interface FolderList {
  path: string | null; parent: string | null; source: string | null; weights: string | null; folders: FolderView[];
  left_out: number;
}

interface MoveLeg {
  source: string; was_on: string[]; devices: string[]; step: string; target: string | null; cause: string; note: string;
}
interface MoveView {
  id: string; model: string; state: string; message: string; changes: Record<string, unknown>; stop_first: boolean;
  cancelling: boolean; created_at: number; ended_at: number | null; legs: MoveLeg[];
}

interface Schema {
  description?: string; default?: unknown; type?: string; enum?: string[]; anyOf?: Schema[]; minimum?: number; maximum?: number;
}
