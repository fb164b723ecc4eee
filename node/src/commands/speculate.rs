//! `--speculate`: what was typed, and the small model that it may name.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use umbel_client::{ClientModel, DraftModel, Drafts, Speculate};
use umbel_shard::{ModelSource, PartsNeeded};

use super::session::{load_blocks, open_ends};
use crate::args::SpeculateArguments;
use crate::config::Config;

/// Why there are no drafts.
const WITHOUT: &str = "--thin has no drafts: leave --speculate out";

/// How tokens of `target` are to be guessed; loads the draft model if one is named.
pub(super) async fn open(
    arguments: &SpeculateArguments,
    target: &Arc<ClientModel>,
    config: &Config,
) -> anyhow::Result<Speculate> {
    match arguments.speculate.as_str() {
        "prompt" if !target.has_weights() => bail!(WITHOUT),
        "auto" => Ok(Speculate::Auto),
        "off" => Ok(Speculate::Off),
        "prompt" => Ok(Speculate::Prompt),
        _ if !target.has_weights() => bail!(WITHOUT),
        name => {
            let source = ModelSource::parse(name).with_context(|| {
                format!("--speculate {name}: it is auto, off, prompt, or a model")
            })?;
            let model = open_ends(source, config, PartsNeeded::everything()).await?;
            let blocks = load_blocks(&model, config).await?;
            let draft = DraftModel::new(model, blocks, target)
                .with_context(|| format!("{name} cannot draft for this model"))?;
            Ok(Speculate::Model(draft))
        }
    }
}

/// What came of it, in a report.
pub(super) fn report(mode: &str, drafts: Drafts) -> Value {
    json!({
        "mode": mode,
        "steps": drafts.steps,
        "steps_with_drafts": drafts.drafted_steps,
        "drafted": drafts.drafted,
        "accepted": drafts.accepted,
        "draft_ms": drafts.took.as_secs_f64() * 1e3,
    })
}
