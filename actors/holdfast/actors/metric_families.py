"""Every metric that there is, by the kind of process that has it. `docs/metrics.md` is written from here.

Names are the field's where it has one (vLLM's and Dynamo's, after their prefix), units are Prometheus' base units. To
add one: declare it in its section, and have somebody who holds the process's `Ledger` do `ledger.add(FAMILY, *labels)`
or `ledger.observe(FAMILY, seconds, *labels)` where it happens, or `ledger.read(FAMILY, reader)` once. Labels are
never what clients choose freely: no request ids, no keys of tenants.
"""

from __future__ import annotations

from typing import Final

from holdfast.actors.metrics import Section

TTFT_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ITL_BOUNDS_S: Final = (
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0
)  # fmt: skip
DURATION_BOUNDS_S: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0)
PAUSE_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 30.0)

# --- gateways, requests ---------------------------------------------------------------------------------

GATEWAY = Section("Gateways")

GATEWAY_INFO = GATEWAY.gauge("holdfast_gateway_info", "This gateway; always 1.", "gateway_id")
GATEWAY_STATE = GATEWAY.gauge(
    "holdfast_gateway_state",
    "1 for the state that `/health` says this gateway is in, 0 for the others: `STARTING`, `HEALTHY`, `UNHEALTHY`, "
    "`DRAINING` or `DRAINED`.",
    "state",
    alert='max by (instance) (holdfast_gateway_state{state="UNHEALTHY"}) == 1',
)
REQUESTS = GATEWAY.counter(
    "holdfast_requests",
    "Requests for tokens that ended: `ok`, `refused`, `overloaded`, `deadline`, `cancelled` (499), "
    "`slow_client`, `failed`, or `moved`: the gateway stopped amid the stream, which its client resumes elsewhere. "
    "`model` is empty for those refused before they reached a deployed model. `resumed` is `true` for what goes on "
    "with a stream that had begun (`Last-Event-ID`). Each request counts once as `false`, by how its first part ended. "
    "Without those that `moved` it counts by its end, and as `cancelled` too if its client was cut off before.",
    "route", "model", "outcome", "resumed",
    unit="requests",
    alert='sum(rate(holdfast_requests_total{outcome="failed"}[5m])) / sum(rate(holdfast_requests_total[5m])) > 0.01',
)  # fmt: skip
CANCELLATIONS = GATEWAY.counter(
    "holdfast_cancellations",
    "Requests that were ended before their end, by why: `stop` and `kill` (by their id), `client` (it left), "
    "`slow_client` (it took nothing), `deadline`, or `parent` (with the request that they belong to).",
    "model", "cause",
    unit="requests",
)  # fmt: skip
UNTOLD = GATEWAY.counter(
    "holdfast_untold_cancellations",
    "Cancellations that another gateway was not told of: it did not answer in time (`unreached`), or too many waited "
    "for it (`full`). What they should have ended there goes on until its deadline.",
    "reason",
    unit="cancellations",
)  # fmt: skip
INFLIGHT = GATEWAY.gauge("holdfast_inflight_requests", "Requests for tokens that have no end yet.", unit="requests")
TASKS = GATEWAY.gauge("holdfast_tasks", "Tasks of the process's event loop.", unit="tasks")
TTFT = GATEWAY.histogram(
    "holdfast_time_to_first_token_seconds",
    "From the request's arrival to its first token. What is resumed is not counted: it had its first token before.",
    "model",
    bounds=TTFT_BOUNDS_S,
    alert="histogram_quantile(0.99, sum by (le, model) (rate(holdfast_time_to_first_token_seconds_bucket[5m]))) > 2",
)
ITL = GATEWAY.histogram(
    "holdfast_inter_token_latency_seconds",
    "Between tokens; those of one write count as spread evenly over the time since the last one.",
    "model",
    bounds=ITL_BOUNDS_S,
    alert="histogram_quantile(0.99, sum by (le, model) (rate(holdfast_inter_token_latency_seconds_bucket[5m]))) > 0.25",
)
REQUEST_DURATION = GATEWAY.histogram(
    "holdfast_request_duration_seconds",
    "From the request's arrival to its end; of one that was resumed, each part for itself.",
    "model",
    bounds=DURATION_BOUNDS_S,
)
PROMPT_TOKENS = GATEWAY.counter(
    "holdfast_prompt_tokens",
    "Tokens of prompts taken in; those of resumed requests were counted before.",
    "model",
    unit="tokens",
)
GENERATION_TOKENS = GATEWAY.counter(
    "holdfast_generation_tokens",
    "Tokens generated; of resumed requests those that their clients did not have.",
    "model",
    unit="tokens",
)

# --- gateways, queues and replicas ----------------------------------------------------------------------

REPLICAS_READY = GATEWAY.gauge(
    "holdfast_replicas_ready",
    "Replicas that take streams from this gateway.",
    "model",
    unit="replicas",
    alert="holdfast_replicas_ready < holdfast_replicas_wanted",
)
REPLICAS_WANTED = GATEWAY.gauge("holdfast_replicas_wanted", "Replicas that there should be.", "model", unit="replicas")
QUEUED = GATEWAY.gauge("holdfast_queued_requests", "Streams that wait for a replica.", "model", unit="streams")
HELD_BACK = GATEWAY.gauge(
    "holdfast_held_back_streams",
    "Streams without a replica until their clients take what there is (none unless `unsent_tokens_max` is set).",
    "model",
    unit="streams",
)
QUEUE_AGE = GATEWAY.gauge(
    "holdfast_queue_age_seconds",
    "How long the stream has waited that waits longest, by priority; not there while none waits.",
    "model", "priority",
    unit="seconds",
    alert='max by (model) (holdfast_queue_age_seconds{priority!="batch"}) > 5',
)  # fmt: skip
QUEUE_WAIT = GATEWAY.histogram(
    "holdfast_queue_wait_seconds",
    "How long streams that got a replica had waited for it, of those that had to, by priority.",
    "model", "priority",
    bounds=DURATION_BOUNDS_S,
)  # fmt: skip
REPLICA_INFLIGHT = GATEWAY.gauge(
    "holdfast_replica_inflight_requests", "This gateway's streams on a replica.", "model", "replica", unit="streams"
)
KV_USAGE = GATEWAY.gauge(
    "holdfast_replica_kv_cache_usage_ratio",
    "Part of the replica's KV cache in use, 0 to 1, as its last heartbeat says.",
    "model", "replica",
    unit="ratio",
    alert="avg by (model) (holdfast_replica_kv_cache_usage_ratio) > 0.95",
)  # fmt: skip

# --- gateways, rejections (turned away, queue ages, ejections) -------------------------------------------

REJECTIONS = GATEWAY.counter(
    "holdfast_rejections",
    "Requests turned away, by the first reason that holds: `kv_blocks`, `prefill_tokens`, `requests_in_flight`, "
    "`queue_age`, `queue_full`, `displaced` by one that goes first, `priority` of others, `retry_budget`, or "
    "`no_replica` came in time; `gateway_full`, without a model, before a request is understood.",
    "model", "reason",
    unit="requests",
    alert="sum by (model, reason) (rate(holdfast_rejections_total[5m])) > 1",
)  # fmt: skip

# --- gateways, migrations --------------------------------------------------------------------------------

MIGRATIONS = GATEWAY.counter(
    "holdfast_migrations",
    "Streams that left a replica, by why (`lost`: the connection; `drained`, `silent`, `deaf`, `stuck`, `stalled`) "
    "and by what came of it: `resumed` elsewhere, `lost_again` before a token, `failed`, or `cancelled` meanwhile.",
    "model", "cause", "outcome",
    unit="streams",
    alert='sum by (model) (rate(holdfast_migrations_total{outcome="failed"}[5m])) > 0',
)  # fmt: skip
MIGRATION_PAUSE = GATEWAY.histogram(
    "holdfast_migration_pause_seconds",
    "For how long a stream that moved brought nothing: from the last step that its old replica told of to the "
    "first token of the new one. Noticing, queueing and reading the prompt again are in it.",
    "model", "cause",
    bounds=PAUSE_BOUNDS_S,
    alert="histogram_quantile(0.99, sum by (le) (rate(holdfast_migration_pause_seconds_bucket[15m]))) > 2",
)  # fmt: skip
RESUMPTIONS = GATEWAY.counter(
    "holdfast_resumptions",
    "Streams of other gateways gone on with: `attached` to where they run, `redrawn`, or `refused`.",
    "model", "outcome",
    unit="streams",
)  # fmt: skip

# --- gateways, health ------------------------------------------------------------------------------------

HEALTH_TRANSITIONS = GATEWAY.counter(
    "holdfast_replica_health_transitions",
    "Replicas that this gateway came to suspect, or to trust again, or to pass over: `to` is `suspected` (`reason` is "
    "`silent`, `deaf` or `stuck`), `trusted` (`heard_again`), `ejected` (`outlier`) or `reinstated` (`time`).",
    "model", "to", "reason",
    unit="transitions",
    alert='sum by (model) (increase(holdfast_replica_health_transitions_total{to="suspected"}[10m])) > 5',
)  # fmt: skip

# --- gateways, what they know ----------------------------------------------------------------------------

PLANE_UP = GATEWAY.gauge(
    "holdfast_plane_up",
    "1 while the servers of the `log`, or of the `leases`, answer this gateway; 0 while they do not.",
    "plane",
    alert="min by (plane) (holdfast_plane_up) == 0",
)
PLANE_DOWN_SINCE = GATEWAY.gauge(
    "holdfast_plane_down_since_timestamp_seconds",
    "When the plane's servers ceased to answer, in seconds since 1970; not there while they do.",
    "plane",
    unit="seconds",
)
LOG_LAG = GATEWAY.gauge(
    "holdfast_log_lag_sequences",
    "Events that the log held when it was last asked (every 2 s or so), and that this gateway has not read yet.",
    unit="events",
    alert="holdfast_log_lag_sequences > 1000",
)
LOG_LAG_SECONDS = GATEWAY.gauge(
    "holdfast_log_lag_seconds",
    "For how long there have been such events without a break; 0 when all was read.",
    unit="seconds",
    alert="holdfast_log_lag_seconds > 10",
)
LOG_SEQUENCE = GATEWAY.gauge(
    "holdfast_log_sequence", "The last event of the log that this gateway has read.", unit="events"
)
LEASE_AGE = GATEWAY.gauge(
    "holdfast_lease_age_seconds",
    "Since the lease was last granted or renewed; more than its time to live means that it is lost. Not there before "
    "the first one.",
    unit="seconds",
    alert="holdfast_lease_age_seconds > 5",
)

# --- nodes -----------------------------------------------------------------------------------------------

NODE = Section("Nodes")

NODE_INFO = NODE.gauge("holdfast_node_info", "This node; always 1.", "node", "version")
NODE_LEADS = NODE.gauge(
    "holdfast_node_leads",
    "1 while this node leads the cluster by what it has read of the log, else 0.",
    alert="sum(holdfast_node_leads) != 1",
)
NODE_SLOTS = NODE.gauge("holdfast_node_slots", "Replicas that the node takes.", unit="replicas")
NODE_REPLICAS = NODE.gauge("holdfast_node_replicas", "Replica processes that it runs.", unit="replicas")
NODE_TASKS = NODE.gauge("holdfast_tasks", "Tasks of the process's event loop.", unit="tasks")
REPLICA_EXITS = NODE.counter(
    "holdfast_replica_exits",
    "Replica processes that ended: `stopped` when told to, `failed` with an exit code, `killed` by a signal, "
    "`unstarted` where none could be started.",
    "how",
    unit="replicas",
    alert='sum(increase(holdfast_replica_exits_total{how!="stopped"}[10m])) > 3',
)
REPLICA_START = NODE.histogram(
    "holdfast_replica_start_seconds",
    "From the start of a replica's process to its readiness.",
    bounds=(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)
NODE_HEALTH_TRANSITIONS = NODE.counter(
    "holdfast_replica_health_transitions",
    "This node's replicas that it found `unhealthy` (`to`), by the check that failed: `check_health`, `silent`, "
    "`canary` or `start`; or `healthy` again (`well_again`). Gateways count what they find under the same name.",
    "model", "to", "reason",
    unit="transitions",
    alert='sum by (model) (increase(holdfast_replica_health_transitions_total{to="unhealthy"}[10m])) > 3',
)  # fmt: skip
NODE_LOG_SEQUENCE = NODE.gauge(
    "holdfast_log_sequence",
    "The last event of the log that this node has read; gateways show it too.",
    unit="events",
    alert="scalar(max(holdfast_log_sequence)) - holdfast_log_sequence > 1000",
)
NODE_LEASE_AGE = NODE.gauge(
    "holdfast_lease_age_seconds",
    "As gateways' `holdfast_lease_age_seconds`, for this node.",
    unit="seconds",
    alert="holdfast_lease_age_seconds > 5",
)

# --- replicas --------------------------------------------------------------------------------------------

REPLICA = Section("Replicas")

REPLICA_INFO = REPLICA.gauge("holdfast_replica_info", "This replica; always 1.", "replica", "model")
RUNNING = REPLICA.gauge("holdfast_num_requests_running", "Streams that the engine steps.", unit="streams")
WAITING = REPLICA.gauge("holdfast_num_requests_waiting", "Streams that wait for room in the engine.", unit="streams")
PREFILL_WAITING = REPLICA.gauge(
    "holdfast_prefill_tokens_waiting", "Tokens of prompts taken in that are not read yet.", unit="tokens"
)
KV_CACHE_USAGE = REPLICA.gauge("holdfast_kv_cache_usage_ratio", "Part of the KV cache in use, 0 to 1.", unit="ratio")
KV_BLOCKS = REPLICA.gauge("holdfast_kv_blocks", "Blocks of the KV cache, by `state`: `used` or `free`.", "state")
GATEWAYS_CONNECTED = REPLICA.gauge("holdfast_gateways_connected", "Gateways that are connected.", unit="gateways")
STREAMS_KEPT = REPLICA.gauge(
    "holdfast_streams_kept", "Streams that ended, and are kept for gateways that may ask for them.", unit="streams"
)
REPLICA_TASKS = REPLICA.gauge("holdfast_tasks", "Tasks of the process's event loop.", unit="tasks")
ENGINE_STEPS = REPLICA.counter("holdfast_engine_steps", "Steps that the engine made.", unit="steps")
STEP_DURATION = REPLICA.histogram(
    "holdfast_engine_step_seconds",
    "How long the engine's steps take.",
    bounds=ITL_BOUNDS_S,
    alert="histogram_quantile(0.99, sum by (le, instance) (rate(holdfast_engine_step_seconds_bucket[5m]))) > 0.5",
)
ENGINE_PROMPT_TOKENS = REPLICA.counter(
    "holdfast_engine_prompt_tokens", "Tokens of prompts taken in, once for each attempt.", unit="tokens"
)
ENGINE_TOKENS = REPLICA.counter("holdfast_engine_generation_tokens", "Tokens drawn.", unit="tokens")
ATTEMPTS = REPLICA.counter(
    "holdfast_attempts",
    "Attempts that gateways sent: `admitted`, `busy` (no room, or draining) or `refused` (the request's fault).",
    "outcome",
    unit="attempts",
    alert='sum(rate(holdfast_attempts_total{outcome="busy"}[5m])) > 1',
)
QUEUE_TIME = REPLICA.histogram(
    "holdfast_request_queue_time_seconds",
    "From an attempt's arrival until the engine had taken it in, or it was turned away.",
    bounds=DURATION_BOUNDS_S,
    alert="histogram_quantile(0.99, sum by (le) (rate(holdfast_request_queue_time_seconds_bucket[5m]))) > 1",
)
