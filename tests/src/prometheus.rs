//! What a process tells Prometheus.

use std::time::Duration;

/// How long an answer may take on a machine that runs many tests at once.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Where a process says in its log that its metrics are.
///
/// # Panics
/// If it does not.
#[must_use]
pub fn url(log: &str) -> String {
    let line = log.lines().find(|line| line.contains("metrics at http"));
    let line = line.unwrap_or_else(|| panic!("no metrics in {log}"));
    let start = line.find("http").unwrap_or_default();
    line[start..].trim_end_matches(['"', '}', ',']).to_owned()
}

/// What is at a path of a server that speaks HTTP, and its status.
///
/// # Panics
/// If there is no answer.
#[must_use]
pub fn get(url: &str) -> (u16, String) {
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    let agent: ureq::Agent = config.timeout_global(Some(TIMEOUT)).build().into();
    let response = agent.get(url).call().unwrap_or_else(|error| panic!("{url}: {error}"));
    let status = response.status().as_u16();
    (status, response.into_body().read_to_string().expect("an answer is text"))
}

/// The value of a metric without labels.
///
/// # Panics
/// If it is not there.
#[must_use]
pub fn metric(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    let value = line.unwrap_or_else(|| panic!("{name} is not in\n{text}"));
    value.parse().unwrap_or_else(|error| panic!("{name} {value}: {error}"))
}
