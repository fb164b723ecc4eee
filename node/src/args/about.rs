//! What the commands take that tell of this program itself.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

/// `umbel completions`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  umbel completions bash > /etc/bash_completion.d/umbel")]
pub struct CompletionsArguments {
    /// The shell.
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

/// `umbel man`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  umbel man | man -l -\n  umbel man --dir /usr/local/share/man/man1"
)]
pub struct ManArguments {
    /// Write the pages of all commands into this folder.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}
