//! `umbel completions` and `umbel man`

use std::io::Write as _;

use anyhow::Context as _;
use clap::CommandFactory as _;

use crate::args::{Arguments, CompletionsArguments, ManArguments};

/// Prints a script for a shell.
pub(super) fn completions(arguments: &CompletionsArguments) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Arguments::command(), "umbel", &mut script);
    std::io::stdout().write_all(&script).context("stdout is closed")
}

/// Prints the manual page, or writes those of all commands.
pub(super) fn man(arguments: &ManArguments) -> anyhow::Result<()> {
    let Some(dir) = &arguments.dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Arguments::command()).render(&mut page)?;
        return std::io::stdout().write_all(&page).context("stdout is closed");
    };
    clap_mangen::generate_to(Arguments::command(), dir)
        .with_context(|| format!("the pages cannot be written into {}", dir.display()))
}
