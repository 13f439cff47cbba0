// The admin API's objects of the views that manage: events, requests, presets, keys, virtual models.

interface HistoryEvent extends EventView { seconds?: number | null }

interface RequestRow {
  id: string; model: string; tenant: string; key: string | null; priority: string; phase: string; age: number;
  tokens: number; instance: string | null; position: number | null; path: string;
}
interface RequestsView { requests: RequestRow[]; silent: string[] }

interface PresetEntry {
  spec: ModelSpec; awake: number; asleep: number; sleep_level: number; devices: string[][];
}
interface PresetSchedule { cron: string; zone: string; exclusive: boolean }
interface ScheduleView extends PresetSchedule { preset: string; words: string; next_at: number | null }
interface LastRun { state: string; started_at: number; ended_at: number | null; message: string }
interface PresetView {
  name: string; description: string; created_at: number; changed_at: number; models: PresetEntry[];
  schedules: PresetSchedule[]; last_run: LastRun | null;
}
interface PresetStep {
  action: string; model: string; reason: string; instances: string[]; count: number; level: number | null;
  settings: string[]; live: boolean; devices: string[];
}
interface PresetProblem { model: string; message: string }
interface PlanView {
  preset: string; exclusive: boolean; in_place: boolean; groups: PresetStep[][]; problems: PresetProblem[];
  notes: string[]; left: string[];
}
interface StepView {
  group: number; step: PresetStep; state: string; message: string; started_at: number | null; ended_at: number | null;
}
interface RunView {
  preset: string; exclusive: boolean; state: string; started_at: number; ended_at: number | null; message: string;
  cancelling: boolean; steps: StepView[]; problems: PresetProblem[]; notes: string[]; missing: PresetProblem[];
}

interface KeyView {
  id: string; prefix: string; name: string; state: string; models: string[]; priority: string; weight: number;
  requests_per_minute: number | null; tokens_per_minute: number | null; concurrent: number | null;
  expires_at: number | null; created_at: number; rotated_at: number | null; former_until: number | null;
  revoked_at: number | null; last_used_at: number | null;
  used: { requests: number; prompt_tokens: number; completion_tokens: number } | null;
}
interface NewKeyView extends KeyView { key: string }
interface UsageRow {
  day: string | null; key: string | null; key_name: string | null; model: string | null; requests: number;
  prompt_tokens: number; completion_tokens: number; last_used: number;
}
interface VirtualSpec {
  name: string; model: string; set: Record<string, unknown>; defaults: Record<string, unknown>; strip: string[];
  system: string | null; fallback: string[];
}
interface VirtualView { name: string; origin: string; created_at: number; spec: VirtualSpec }

interface UserView { name: string; role: "admin" | "read-only"; created_at: number; changed_at: number; sessions: number }
