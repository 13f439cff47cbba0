// The admin API's objects, as far as the page reads them. Sizes in bytes, times in Unix seconds.

interface Progress { phase: string; percent: number; seconds_left: number | null }
interface Failure { code: string; message: string; hint: string }
interface LeaseView {
  device: string; rank: number; lease: number; backed: number; used: number; cached: number;
  floor: number; ceiling: number | null; missing: number; waiting: number; recalled: number | null;
}
interface MemoryView {
  mode: string; reason: string; held: Record<string, number>; weights: number | null;
  floor: number | null; ceiling: number | null; priority: number | null; lease: number | null; backed: number | null;
  used: number | null; cached: number | null; missing: number | null; waiting: number | null; leases: LeaseView[];
}
interface InstanceView {
  id: string; model: string; engine: string; state: string; reason: string; devices: string[];
  created_at: number; changed_at: number; ready_at: number | null; restarts: number; restart_at: number | null;
  progress: Progress | null; failure: Failure | null; memory: MemoryView; outdated: boolean;
  can_sleep: boolean; sleepless_because: string; sleep_level: number | null; wanted_awake: boolean;
}
interface ModelSpec { name: string; source: string; engine: string; pin: boolean; priority: number }
interface ModelView { name: string; desired: number; state: string; spec: ModelSpec; instances: InstanceView[] }
interface PoolView {
  budget: number; limit: number | null; headroom: number; others: number; leased: number; owed: number;
  held_back: number; backed: number; used: number; cached: number;
}
interface DeviceView {
  id: string; kind: string; name: string; memory_total: number; memory_used: number; utilization: number | null;
  temperature: number | null; power: number | null; error: string | null; instances: string[]; pool: PoolView | null;
}
interface StatusView { version: string; started_at: number; warnings: string[] }
interface Snapshot { version: number; status: StatusView; models: ModelView[]; devices: DeviceView[] }
interface EventView {
  id?: number | null; at: number; level: string; kind: string; model: string | null; instance: string | null;
  message: string;
}
interface ModelTraffic {
  model: string; running: number; queued: number; held: number; requests: number; prompt_tokens: number;
  completion_tokens: number; first_byte: number[];
}
interface Traffic { at: number; bounds: number[]; models: ModelTraffic[] }
