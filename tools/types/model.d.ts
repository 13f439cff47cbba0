// What a model's page reads of the admin API beside api.d.ts. Sizes in bytes, times in Unix seconds.

interface ModelRequest {
  id: string; model: string; tenant: string; key: string | null; priority: string; phase: string; age: number; tokens: number;
  instance: string | null; position: number | null; path: string;
}
interface ModelLoad {
  model: string; instance: string; engine: string; version: string; devices: string[]; started_at: number; seconds: number;
  outcome: string; phases: Record<string, number>;
}
interface ModelProfile {
  model: string; device: string; current: boolean; version: string; measured_at: number; loads: number; weights: number | null;
  overhead: number | null; kv_token: number | null; load_seconds: number | null; phases: Record<string, number>;
  sleep_seconds: number | null; wake_seconds: number | null; asleep: number | null;
}
interface ModelCanary { model: string; instance: string; asked: boolean; completes: boolean; answer: string | null }
interface ModelProfiles { profiles: ModelProfile[]; prompt: string; canaries: ModelCanary[] }
interface ModelEvent extends EventView { seconds?: number | null }
