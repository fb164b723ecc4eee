//! The picture as lines of text.

use super::{ModelOverview, Overview, milliseconds};

/// A table for each model.
#[must_use]
pub fn text(overview: &Overview) -> String {
    if overview.models.is_empty() {
        return "nobody serves anything".to_owned();
    }
    let tables: Vec<_> = overview.models.iter().map(table).collect();
    tables.join("\n\n")
}

fn table(model: &ModelOverview) -> String {
    let ModelOverview { id, name, block_count, .. } = model;
    let mut lines = vec![
        format!("{name} ({block_count} blocks), id {id}"),
        format!(
            "{:>9}  {:<52}  {:<9}  {:>8}  {:>9}  {:>7}  {:>8}  {:>5}",
            "blocks", "peer", "version", "decode/s", "prefill/s", "ms away", "KV free", "queue"
        ),
    ];
    for server in &model.servers {
        let away = server.round_trip.map_or_else(
            || "?".to_owned(),
            |round_trip| format!("{:.1}", milliseconds(round_trip)),
        );
        let line = format!(
            "{:>9}  {:<52}  {:<9}  {:>8.1}  {:>9.0}  {away:>7}  {:>8}  {:>5}  {}",
            server.span.to_string(),
            server.peer.to_string(),
            server.version,
            server.decode_tokens_per_second,
            server.prefill_tokens_per_second,
            server.kv_tokens_free,
            server.queue_depth,
            server.state(),
        );
        lines.push(line.trim_end().to_owned());
    }
    let unserved: Vec<_> = model.unserved().iter().map(ToString::to_string).collect();
    if !unserved.is_empty() {
        lines.push(format!("served by nobody: blocks {}", unserved.join(", ")));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{overview, server};
    use super::*;

    #[test]
    fn a_table_says_who_serves_what_and_what_nobody_does() {
        let mut moving = server(2, 2, 3);
        moving.moving_to = Some("1..3".parse().unwrap());
        let text = text(&overview(&[moving, server(1, 0, 2)]));
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("a-model (4 blocks), id 0707"), "{text}");
        let words: Vec<_> = lines[2].split_whitespace().collect();
        assert_eq!(words[0], "0..2");
        assert_eq!(words[2..], ["0.1.0", "50.0", "500", "1.5", "512", "3"]);
        assert!(lines[3].ends_with("to 1..3") && lines[3].contains(" ? "), "{text}");
        assert_eq!(lines[4..], ["served by nobody: blocks 3"]);
    }

    #[test]
    fn an_empty_swarm_is_said_to_be_empty() {
        assert_eq!(super::text(&Overview::default()), "nobody serves anything");
    }
}
