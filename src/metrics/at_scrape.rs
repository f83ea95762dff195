//! The gauges that are worked out when somebody asks: the state, and the age of the last
//! confirmation.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use super::{Labels, ServiceMetrics, State, labels, millis, seconds};

#[derive(Debug)]
pub(super) struct AtScrape {
    pub(super) services: Vec<Arc<ServiceMetrics>>,
}

impl Collector for AtScrape {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let mut states = Vec::new();
        let mut ages = Vec::new();
        let mut times = Vec::new();
        for service in &self.services {
            // One load, so that every scrape sees exactly one state.
            let now_in = service.state.load(Relaxed);
            for state in State::ALL {
                let labels = labels(&service.name, "state", state.as_str());
                states.push((labels, u64::from(state as usize == now_in)));
            }
            let at = &service.confirmed_at;
            let since_base_ms = at.since_base_ms.load(Relaxed);
            if since_base_ms != 0 {
                let labels = vec![("service", service.name.clone())];
                let age_ms = (millis(at.base.elapsed()) + 1).saturating_sub(since_base_ms);
                ages.push((labels.clone(), seconds(age_ms)));
                times.push((labels, seconds(at.unix_ms.load(Relaxed))));
            }
        }
        gauges(&mut encoder, "state", "What the service is doing: 1 for one state", states)?;
        gauges(
            &mut encoder,
            "seconds_since_confirmed",
            "Time since a confirmation moved or all was confirmed; absent before the first",
            ages,
        )?;
        gauges(
            &mut encoder,
            "confirmed_timestamp_seconds",
            "Unix time of the last confirmation; absent before the first",
            times,
        )
    }
}

fn gauges<N>(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    samples: Vec<(Labels, N)>,
) -> fmt::Result
where
    ConstGauge<N>: EncodeMetric,
    N: EncodeGaugeValue,
{
    if samples.is_empty() {
        return Ok(());
    }
    // The registry ends the help of its own metrics with a full stop.
    let help = format!("{help}.");
    let mut metric = encoder.encode_descriptor(name, &help, None, MetricType::Gauge)?;
    for (labels, value) in samples {
        ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}
