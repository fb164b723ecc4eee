//! What is wrong with this machine, its way to others, and the swarm, and what to do about it.
//!
//! Each check is a function from what was seen to a [`Finding`]; `machine`, `accelerator`, `model` and
//! `network` see.

mod accelerator;
mod clock;
mod machine;
mod model;
mod network;
mod reach;

use std::fmt;

use serde_json::{Value, json};
use umbel_net::{Multiaddr, Way};
use umbel_shard::ModelSource;

use crate::config::Config;

/// How good a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    /// As it should be.
    Good,
    /// Something may work less well than it could, or could not be found out.
    Note,
    /// Something does not work.
    Bad,
}

impl Grade {
    /// One word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Note => "note",
            Self::Bad => "BAD",
        }
    }
}

/// What was found out about one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How good it is.
    pub grade: Grade,
    /// The thing.
    pub subject: &'static str,
    /// What was found.
    pub what: String,
    /// What to do; nothing where all is well.
    pub advice: Option<String>,
}

impl Finding {
    fn good(subject: &'static str, what: impl Into<String>) -> Self {
        Self { grade: Grade::Good, subject, what: what.into(), advice: None }
    }

    fn note(subject: &'static str, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { grade: Grade::Note, subject, what: what.into(), advice: Some(advice.into()) }
    }

    fn bad(subject: &'static str, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { grade: Grade::Bad, subject, what: what.into(), advice: Some(advice.into()) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<4}  {:<12}  {}", self.grade.word(), self.subject, self.what)?;
        match &self.advice {
            Some(advice) => write!(f, "\n{:20}{advice}", ""),
            None => Ok(()),
        }
    }
}

/// All that was found, in the order in which it was looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings(Vec<Finding>);

impl Findings {
    /// The worst of them; good where there are none.
    #[must_use]
    pub fn worst(&self) -> Grade {
        self.0.iter().map(|finding| finding.grade).max().unwrap_or(Grade::Good)
    }

    /// For programs.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let findings = self.0.iter().map(|finding| {
            json!({
                "grade": finding.grade.word().to_lowercase(),
                "subject": finding.subject,
                "what": finding.what,
                "advice": finding.advice,
            })
        });
        json!({ "findings": findings.collect::<Vec<_>>() })
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// What to look at, besides this machine.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// A model that is to be served here.
    pub model: ModelSource,
    /// To peers of the swarm.
    pub way: Way,
    /// Where a server is to listen; on free ports where that is left open.
    pub listen: Vec<Multiaddr>,
}

/// Looks at everything.
pub async fn examine(wanted: Wanted, config: &Config) -> Findings {
    let mut findings = machine::look(config);
    findings.extend(accelerator::look());
    findings.extend(model::look(wanted.model, config).await);
    findings.extend(network::sockets(&wanted.listen).await);
    if wanted.way.addresses.is_empty() {
        let advice = "name a peer with --join, and it is asked to dial back";
        findings.push(Finding::note("reachability", "not looked at", advice));
    } else {
        findings.extend(network::swarm(&wanted.way, &wanted.listen).await);
    }
    Findings(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_finding_counts_and_each_says_what_to_do() {
        let good = Finding::good("memory", "1 GB is free");
        let bad = Finding::bad("disk", "it is full", "delete something");
        assert_eq!(Findings::default().worst(), Grade::Good);
        let findings = Findings(vec![bad, Finding::note("clock", "?", "wait"), good]);
        assert_eq!(findings.worst(), Grade::Bad);
        let text = findings.to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "BAD   disk          it is full");
        assert_eq!(lines[1], "                    delete something");
        assert_eq!(lines[4], "good  memory        1 GB is free");
        assert_eq!(findings.to_json()["findings"][0]["grade"], "bad");
    }
}
