//! What the links of a server have carried.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use umbel_net::Network;

/// The links of a peer, looked at when Prometheus asks.
#[derive(Debug)]
pub struct Links(pub Network);

impl Collector for Links {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let traffic = self.0.traffic();
        let counters = [
            (
                "umbel_sent_bytes",
                "Bytes of links, when their turn to be sent has come",
                traffic.sent,
            ),
            ("umbel_received_bytes", "Bytes of links, when they are read", traffic.received),
        ];
        for (name, help, value) in counters {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(metric)?;
        }
        let places = self.0.standing().borrow().relays.len();
        let gauges = [
            ("umbel_circuits", "Pairs of peers between which is passed on", self.0.circuits()),
            ("umbel_places", "Relays by which others come in", places),
        ];
        for (name, help, value) in gauges {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(metric)?;
        }
        Ok(())
    }
}
