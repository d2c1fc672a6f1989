//! The figures in Prometheus's classic text format, and their names: the one place that has them.
//!
//! Names beginning with `vllm:` repeat figures under the names that autoscalers, gateways and dashboards know from vLLM.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bitnet_inference::EngineStats;
use bitnet_kernels::kv::PAGE;

use super::histogram::Histogram;
use super::recorder::{REASONS, Recorder};
use crate::memory::MemoryMonitor;
use crate::model::BitNetModel;
use crate::response_cache;

/// A model at one moment.
struct View {
    name: String,
    stats: EngineStats,
    recorder: Arc<Recorder>,
}

/// A figure with its name, the name that vLLM has for it, and what it is.
struct Figure {
    name: &'static str,
    alias: Option<&'static str>,
    help: &'static str,
    value: Value,
}

enum Value {
    Gauge(fn(&EngineStats) -> f64),
    Counter(fn(&EngineStats) -> u64),
    Histogram(fn(&Recorder) -> &Histogram),
}

const fn figure(
    name: &'static str,
    alias: Option<&'static str>,
    help: &'static str,
    value: Value,
) -> Figure {
    Figure { name, alias, help, value }
}

#[rustfmt::skip]
const FIGURES: [Figure; 26] = [
    figure("bitnet_requests_running", Some("vllm:num_requests_running"),
        "Requests in the running batch.", Value::Gauge(|s| s.running as f64)),
    figure("bitnet_requests_waiting", Some("vllm:num_requests_waiting"),
        "Requests that wait for their first step.", Value::Gauge(|s| s.waiting as f64)),
    figure("bitnet_waiting_tokens", None,
        "Prompt tokens of the requests that wait.", Value::Gauge(|s| s.waiting_tokens as f64)),
    figure("bitnet_kv_cache_usage_ratio", Some("vllm:kv_cache_usage_perc"),
        "Part of the key-value cache that requests hold, from 0 to 1.", Value::Gauge(kv_usage)),
    figure("bitnet_prefix_cache_queries_total", Some("vllm:prefix_cache_queries_total"),
        "Prompt tokens looked up in the prefix cache.", Value::Counter(|s| s.prompt_tokens)),
    figure("bitnet_prefix_cache_hits_total", Some("vllm:prefix_cache_hits_total"),
        "Prompt tokens found in the prefix cache.", Value::Counter(|s| s.cached_tokens)),
    figure("bitnet_kv_cache_evictions_total", None,
        "Pages with content that were given to others.", Value::Counter(|s| s.evicted_pages)),
    figure("bitnet_prompt_tokens_total", Some("vllm:prompt_tokens_total"),
        "Prompt tokens of the requests that have begun.", Value::Counter(|s| s.prompt_tokens)),
    figure("bitnet_generation_tokens_total", Some("vllm:generation_tokens_total"),
        "Tokens generated.", Value::Counter(|s| s.generated_tokens)),
    figure("bitnet_spec_proposed_tokens_total", Some("vllm:spec_decode_num_draft_tokens_total"),
        "Tokens of drafts that were computed.", Value::Counter(|s| s.drafted_tokens)),
    figure("bitnet_spec_accepted_tokens_total", Some("vllm:spec_decode_num_accepted_tokens_total"),
        "Tokens of drafts that stood.", Value::Counter(|s| s.accepted_tokens)),
    figure("bitnet_kv_cache_bytes", None,
        "Memory that the system has given for keys and values.", Value::Gauge(|s| s.kv_bytes as f64)),
    figure("bitnet_scratch_bytes", None,
        "Working memory of steps.", Value::Gauge(|s| s.scratch_bytes as f64)),
    figure("bitnet_preemptions_total", Some("vllm:num_preemptions_total"),
        "Times that a running request had to make room.", Value::Counter(|s| s.preemptions)),
    figure("bitnet_steps_total", None, "Steps.", Value::Counter(|s| s.steps)),
    figure("bitnet_failed_steps_total", None,
        "Steps that broke off.", Value::Counter(|s| s.failed_steps)),
    figure("bitnet_time_to_first_token_seconds", Some("vllm:time_to_first_token_seconds"),
        "From a request to its first token.", Value::Histogram(|r| &r.time_to_first_token)),
    figure("bitnet_inter_token_latency_seconds", Some("vllm:inter_token_latency_seconds"),
        "From one token of an answer to the next.", Value::Histogram(|r| &r.inter_token)),
    figure("bitnet_e2e_request_latency_seconds", Some("vllm:e2e_request_latency_seconds"),
        "From a request to its end.", Value::Histogram(|r| &r.end_to_end)),
    figure("bitnet_request_queue_time_seconds", Some("vllm:request_queue_time_seconds"),
        "From a request to its first step.", Value::Histogram(|r| &r.queue)),
    figure("bitnet_request_prefill_time_seconds", Some("vllm:request_prefill_time_seconds"),
        "From a generation's first step to its first token.", Value::Histogram(|r| &r.prefill)),
    figure("bitnet_request_decode_time_seconds", Some("vllm:request_decode_time_seconds"),
        "From a generation's first token to its last.", Value::Histogram(|r| &r.decode)),
    figure("bitnet_step_seconds", None, "Time of a step.", Value::Histogram(|r| &r.step)),
    figure("bitnet_step_requests", None,
        "Requests in a step: the batch size.", Value::Histogram(|r| &r.step_requests)),
    figure("bitnet_step_tokens", None, "Tokens in a step.", Value::Histogram(|r| &r.step_tokens)),
    figure("bitnet_step_cost_per_token_seconds", None,
        "What a token adds to a step, as learned from steps with many.", Value::Gauge(|s| s.step_costs[1])),
];

/// The part of the cache that requests hold.
pub(super) fn kv_usage(stats: &EngineStats) -> f64 {
    stats.kv_pages_used as f64 / stats.kv_pages.max(1) as f64
}

/// All figures of these models, and of the process.
pub(super) fn render(models: &[(BitNetModel, Arc<Recorder>)]) -> String {
    let views: Vec<View> = models
        .iter()
        .map(|(model, recorder)| View {
            name: model.info().name.clone(),
            stats: model.stats(),
            recorder: Arc::clone(recorder),
        })
        .collect();
    let mut text = Text::default();
    for Figure { name, alias, help, value } in &FIGURES {
        for name in [Some(name), alias.as_ref()].into_iter().flatten() {
            text.figure(name, help, value, &views);
        }
    }
    for (name, blocks) in
        [("bitnet_kv_cache_info", "num_blocks"), ("vllm:cache_config_info", "num_gpu_blocks")]
    {
        text.head(name, "gauge", "Tokens of a page of the key-value cache, and its pages.");
        for (engine, view) in views.iter().enumerate() {
            let (size, count) = (PAGE.to_string(), view.stats.kv_pages.to_string());
            text.sample(name, engine, view, &[("block_size", &size), (blocks, &count)], 1.0);
        }
    }
    text.ended(&views);
    text.process();
    text.0
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}").expect("a text takes all");
    }

    fn sample(
        &mut self,
        name: &str,
        engine: usize,
        view: &View,
        labels: &[(&str, &str)],
        value: f64,
    ) {
        let write = &mut self.0;
        write!(write, "{name}{{model_name=\"{}\",engine=\"{engine}\"", escape(&view.name))
            .expect("a text takes all");
        for (label, value) in labels {
            write!(write, ",{label}=\"{}\"", escape(value)).expect("a text takes all");
        }
        writeln!(write, "}} {value}").expect("a text takes all");
    }

    fn figure(&mut self, name: &str, help: &str, value: &Value, views: &[View]) {
        let kind = match value {
            Value::Gauge(_) => "gauge",
            Value::Counter(_) => "counter",
            Value::Histogram(_) => "histogram",
        };
        self.head(name, kind, help);
        for (engine, view) in views.iter().enumerate() {
            match value {
                Value::Gauge(value) => self.sample(name, engine, view, &[], value(&view.stats)),
                Value::Counter(value) => {
                    self.sample(name, engine, view, &[], value(&view.stats) as f64);
                }
                Value::Histogram(histogram) => {
                    self.histogram(name, engine, view, histogram(&view.recorder));
                }
            }
        }
    }

    fn histogram(&mut self, name: &str, engine: usize, view: &View, histogram: &Histogram) {
        let buckets = histogram.cumulative();
        let count = buckets.last().map_or(0, |&(_, count)| count); // as in the last bucket
        for (bound, count) in buckets {
            let bound = if bound.is_infinite() { "+Inf".to_owned() } else { format!("{bound:?}") };
            let name = format!("{name}_bucket");
            self.sample(&name, engine, view, &[("le", &bound)], count as f64);
        }
        self.sample(&format!("{name}_sum"), engine, view, &[], histogram.sum());
        self.sample(&format!("{name}_count"), engine, view, &[], count as f64);
    }

    /// What all models of the process share.
    fn process(&mut self) {
        let (monitor, caches) = (MemoryMonitor::new(), response_cache::totals());
        let usage = monitor.current_usage();
        let name = "bitnet_memory_bytes";
        self.head(name, "gauge", "Memory of the process, by what it is for.");
        let kinds = [
            ("weights_mapped", usage.weights_mapped),
            ("weights_owned", usage.weights_owned),
            ("kv_cache", usage.kv_cache),
            ("activations", usage.activations),
            ("tokenizer", usage.tokenizer),
            ("response_caches", usage.response_caches),
            ("other", usage.other),
        ];
        for (kind, bytes) in kinds {
            writeln!(self.0, "{name}{{kind=\"{kind}\"}} {bytes}").expect("a text takes all");
        }
        let mut plain = |name: &str, kind: &str, help: &str, value: Option<u64>| {
            let Some(value) = value else { return };
            self.head(name, kind, help);
            writeln!(self.0, "{name} {value}").expect("a text takes all");
        };
        let help = "The most memory that the process is to have.";
        plain("bitnet_memory_limit_bytes", "gauge", help, monitor.limit());
        let help = "Times that memory was given back that is only kept.";
        plain("bitnet_memory_cleanups_total", "counter", help, Some(monitor.cleanups()));
        let help = "Requests and models refused for want of memory.";
        plain("bitnet_memory_refused_total", "counter", help, Some(monitor.refused()));
        let help = "Answers that were in a response cache.";
        plain("bitnet_response_cache_hits_total", "counter", help, Some(caches.hits));
        let help = "Answers that had to be made for a response cache.";
        plain("bitnet_response_cache_misses_total", "counter", help, Some(caches.misses));
        let help = "Answers that had to go for others.";
        plain("bitnet_response_cache_evictions_total", "counter", help, Some(caches.evictions));
        let (entries, help) = (caches.entries as u64, "Answers in response caches.");
        plain("bitnet_response_cache_entries", "gauge", help, Some(entries));
        let help = "Memory of response caches, about.";
        plain("bitnet_response_cache_bytes", "gauge", help, Some(caches.bytes));
        let help = "Memory that the process has in use.";
        plain("process_resident_memory_bytes", "gauge", help, usage.resident);
    }

    /// Requests by how they ended.
    fn ended(&mut self, views: &[View]) {
        let count = |view: &View, of: &dyn Fn(usize) -> bool| {
            let ended = view.recorder.ended.iter().enumerate().filter(|(index, _)| of(*index));
            ended.map(|(_, count)| count.load(Ordering::Relaxed)).sum::<u64>() as f64
        };
        let name = "bitnet_requests_total";
        self.head(name, "counter", "Requests that have ended, by how.");
        for (engine, view) in views.iter().enumerate() {
            for (index, (reason, _)) in REASONS.iter().enumerate() {
                let value = count(view, &|other| other == index);
                self.sample(name, engine, view, &[("reason", reason)], value);
            }
        }
        let name = "vllm:request_success_total";
        self.head(name, "counter", "Generations that have ended without an error, by how.");
        for (engine, view) in views.iter().enumerate() {
            for alias in ["stop", "length", "abort"] {
                let of = |index: usize| REASONS[index].1 == alias && REASONS[index].0 != "scored";
                let value = count(view, &of);
                self.sample(name, engine, view, &[("finished_reason", alias)], value);
            }
        }
    }
}

/// A label's value as it stands between quotation marks.
fn escape(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        assert_eq!(escape("a\\b\"c\nd"), r#"a\\b\"c\nd"#);
    }
}
