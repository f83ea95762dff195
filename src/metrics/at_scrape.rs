//! The gauges that are computed at a scrape: the state, the age of the last confirmation, and how
//! far behind the server things are.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use super::{Labels, ServiceMetrics, labels, seconds};
use crate::overview::ServiceState;

/// A reading of the server is exported for this long: a process that no longer leads would
/// otherwise export it for ever.
const SEEN_FOR: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub(super) struct AtScrape {
    pub(super) services: Vec<Arc<ServiceMetrics>>,
}

impl Collector for AtScrape {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let mut states = Vec::new();
        let mut ages = Vec::new();
        let mut times = Vec::new();
        let mut lags = Vec::new();
        let (mut servers, mut retained, mut left) = (Vec::new(), Vec::new(), Vec::new());
        for service in &self.services {
            // One load, so that every scrape sees exactly one state.
            let now_in = service.state.load(Relaxed);
            for state in ServiceState::ALL {
                let labels = labels(&service.name, "state", state.as_str());
                states.push((labels, u64::from(state as usize == now_in)));
            }
            let labels = || vec![("service", service.name.clone())];
            if let Some(age) = service.since_confirmed() {
                ages.push((labels(), age.as_secs_f64()));
                times.push((labels(), seconds(service.confirmed_at.unix_ms.load(Relaxed))));
            }
            lags.extend(service.lag().map(|lag| (labels(), lag.as_secs_f64())));
            let seen = service.server_wal();
            let is_recent = |at: SystemTime| at.elapsed().unwrap_or_default() <= SEEN_FOR;
            if let Some((wal, _)) = seen.filter(|(_, at)| is_recent(*at)) {
                servers.push((labels(), wal.lsn.0));
                retained.extend(wal.retained.bytes.map(|bytes| (labels(), bytes)));
                left.extend(wal.retained.left_bytes.map(|bytes| (labels(), bytes)));
            }
        }
        gauges(&mut encoder, "state", "What the service is doing: 1 for one state", states)?;
        gauges(
            &mut encoder,
            "seconds_since_confirmed",
            "Time since the confirmed LSN moved or everything was confirmed; absent before the \
             first",
            ages,
        )?;
        gauges(
            &mut encoder,
            "confirmed_timestamp_seconds",
            "Unix time of the last confirmation; absent before the first",
            times,
        )?;
        gauges(
            &mut encoder,
            "current_lag_seconds",
            "How long changes in Postgres have been waiting to be durable; absent while another \
             leads",
            lags,
        )?;
        gauges(
            &mut encoder,
            "server_lsn",
            "End of the WAL on the server, as bytes, when last read; absent if not read recently",
            servers,
        )?;
        gauges(
            &mut encoder,
            "retained_wal_bytes",
            "WAL that the slot retains on the server, when last read; absent if not read recently",
            retained,
        )?;
        gauges(
            &mut encoder,
            "retained_wal_left_bytes",
            "WAL that may be written before max_slot_wal_keep_size invalidates the slot; absent \
             without",
            left,
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
