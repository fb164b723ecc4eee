//! `umbel serve`

use crate::args::ServeArguments;
use crate::config::Config;

pub(super) async fn run(arguments: ServeArguments, config: &Config) -> anyhow::Result<()> {
    crate::serve::serve(arguments, config).await
}
