//! `umbel inspect`

use std::io::Write as _;

use anyhow::Context as _;
use serde_json::json;
use umbel_shard::{Experts, Model, ModelSource, PartsNeeded};

use crate::args::InspectArguments;
use crate::config::Config;
use crate::progress::Shown;

pub(super) async fn run(arguments: InspectArguments, config: &Config) -> anyhow::Result<()> {
    let source = ModelSource::parse(arguments.model.name())?;
    let licence = licence(&source);
    let config = config.clone();
    let open = move || -> anyhow::Result<Model> {
        // The tokenizer too, to say whether there is one.
        let parts = PartsNeeded { tokenizer: true, ..PartsNeeded::nothing() };
        Ok(Model::open(&source, &config.cache(), parts, &Shown::default())?)
    };
    let model = tokio::task::spawn_blocking(open).await??;
    let text = if arguments.json { as_json(&model, licence) } else { as_text(&model, licence) };
    writeln!(std::io::stdout(), "{text}").context("stdout is closed")
}

/// The licence of a model, where it is known here.
fn licence(source: &ModelSource) -> Option<&'static str> {
    match source {
        ModelSource::Catalogue(entry) => Some(entry.licence),
        ModelSource::Hub(_) | ModelSource::Folder(_) | ModelSource::GgufFile(_) => None,
    }
}

fn as_json(model: &Model, licence: Option<&str>) -> String {
    let config = model.config();
    json!({
        "name": model.name(),
        "id": model.id().to_string(),
        "licence": licence,
        "family": config.family.to_string(),
        "quantization": model.manifest().quantization(),
        "blocks": config.block_count,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "experts": config.experts.map(|experts| experts.count),
        "experts_per_token": config.experts.map(|experts| experts.per_token),
        "heads": config.head_count,
        "kv_heads": config.kv_head_count,
        "head_size": config.head_size,
        "vocabulary_size": config.vocabulary_size,
        "context_tokens": config.context_tokens,
        "tied_embeddings": config.tied_embeddings,
        "kv_bytes_per_token_and_block": config.kv_token_bytes_per_block(),
        "block_bytes": model.manifest().blocks_bytes(),
        "ends_bytes": model.manifest().ends_bytes(),
        "tokenizer": model.tokenizer().is_some(),
        "chat_template": model.chat_template().is_some(),
    })
    .to_string()
}

fn as_text(model: &Model, licence: Option<&str>) -> String {
    let config = model.config();
    let sizes = model.manifest().blocks_bytes();
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let yes = |yes: bool| if yes { "yes" } else { "no" };
    let (least, most) = (sizes.iter().min().copied(), sizes.iter().max().copied());
    let rows = [
        ("model", model.name().to_owned()),
        ("id", model.id().to_string()),
        ("licence", licence.unwrap_or("not known here: see where the model comes from").to_owned()),
        ("family", config.family.to_string()),
        ("quantization", model.manifest().quantization().to_owned()),
        (
            "blocks",
            format!(
                "{} of {:.2} to {:.2} MB, {:.1} MB in all",
                config.block_count,
                megabytes(least.unwrap_or(0)),
                megabytes(most.unwrap_or(0)),
                megabytes(sizes.iter().sum()),
            ),
        ),
        (
            "ends",
            format!(
                "{:.1} MB (embedding, final norm, head)",
                megabytes(model.manifest().ends_bytes())
            ),
        ),
        ("hidden size", config.hidden_size.to_string()),
        (
            "MLP size",
            match config.experts {
                None => config.intermediate_size.to_string(),
                Some(Experts { count, per_token, .. }) => {
                    let size = config.intermediate_size;
                    format!("{count} experts of {size}, {per_token} of them for each token")
                }
            },
        ),
        (
            "heads",
            format!(
                "{} of {}, {} for keys and values",
                config.head_count, config.head_size, config.kv_head_count
            ),
        ),
        ("vocabulary", config.vocabulary_size.to_string()),
        ("context", format!("{} tokens", config.context_tokens)),
        ("KV cache", format!("{} bytes per token and block", config.kv_token_bytes_per_block())),
        ("tied embedding", yes(config.tied_embeddings).to_owned()),
        ("tokenizer", yes(model.tokenizer().is_some()).to_owned()),
        ("chat template", yes(model.chat_template().is_some()).to_owned()),
    ];
    let lines: Vec<_> = rows.iter().map(|(name, value)| format!("{name:<15} {value}")).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_licence_of_a_model_of_the_catalogue_is_said_and_no_other_made_up() {
        let of = |name: &str| licence(&ModelSource::parse(name).unwrap());
        assert_eq!(of("smollm2-135m"), Some("Apache-2.0"));
        assert_eq!(of("hf:HuggingFaceTB/SmolLM2-135M-Instruct"), None);
        assert_eq!(of(env!("CARGO_MANIFEST_DIR")), None, "a folder");
    }
}
