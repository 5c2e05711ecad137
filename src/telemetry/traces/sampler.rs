use super::span::{new_span_id, new_trace_id};
use crate::{
    config::{SamplerConfig, TracesConfig},
    domain::{TraceContext, TraceParent},
};

/// Decides which traces are sampled, as the samplers of OpenTelemetry's specification do.
pub(super) struct Sampler {
    /// A trace is sampled if the lower half of its id, without its last bit, is below this.
    upper_bound: u64,
    is_parent_based: bool,
}

impl Sampler {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "the ratio is 0 to 1, so the product is 0 to 2^63"
    )]
    pub(super) fn new(config: SamplerConfig) -> Self {
        let upper_bound = (config.ratio * (1_u64 << 63) as f64) as u64;
        Self { upper_bound, is_parent_based: config.is_parent_based }
    }

    /// Whether a trace is sampled. Equal ids have equal answers in every process with this ratio.
    pub(super) fn samples(&self, parent: Option<&TraceParent>, trace_id: &[u8; 16]) -> bool {
        match parent {
            Some(parent) if self.is_parent_based => parent.is_sampled,
            Some(_) | None => {
                let low: Option<&[u8; 8]> = trace_id.last_chunk();
                low.is_some_and(|low| u64::from_be_bytes(*low) >> 1 < self.upper_bound)
            }
        }
    }
}

/// Begins traces as a caller does that makes no spans of its own. The bench plays the part of
/// ingest with it.
pub(crate) struct TraceStarter(Option<Sampler>);

impl TraceStarter {
    /// `None`: traces are off.
    pub(crate) fn new(traces: Option<&TracesConfig>) -> Self {
        Self(traces.map(|config| Sampler::new(config.sampler)))
    }

    /// The context of a new trace. `None` unless it is sampled.
    pub(crate) fn begin(&self) -> Option<TraceContext> {
        let (sampler, trace_id) = (self.0.as_ref()?, new_trace_id());
        let is_sampled = sampler.samples(None, &trace_id);
        is_sampled.then(|| TraceContext { trace_id, span_id: new_span_id(), state: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(ratio: f64, is_parent_based: bool) -> Sampler {
        Sampler::new(SamplerConfig { ratio, is_parent_based })
    }

    fn parent(is_sampled: bool) -> TraceParent {
        let flags = u8::from(is_sampled);
        let text = format!("00-{}-{}-{flags:02x}", "f".repeat(32), "a".repeat(16));
        TraceParent::parse(text.as_bytes(), None).unwrap()
    }

    #[test]
    fn a_ratio_samples_its_share_of_the_traces() {
        for (ratio, expected) in [(0.0, 0..=0), (0.1, 800..=1_200), (1.0, 10_000..=10_000)] {
            let sampler = sampler(ratio, false);
            let taken = (0..10_000).filter(|_| sampler.samples(None, &new_trace_id())).count();

            assert!(expected.contains(&taken), "{ratio}: {taken}");
        }
    }

    #[test]
    fn a_caller_decides_under_a_parent_based_sampler_alone() {
        let id = parent(true).context.trace_id;

        assert!(sampler(0.0, true).samples(Some(&parent(true)), &id));
        assert!(!sampler(1.0, true).samples(Some(&parent(false)), &id));
        assert!(!sampler(0.5, false).samples(Some(&parent(true)), &id));
        assert!(sampler(1.0, false).samples(Some(&parent(false)), &id));
    }
}
