//! `umbel serve`

use crate::args::ServeArguments;
use crate::config::Config;
use crate::device::DeviceWish;
use crate::serve::{each, serve};

pub(super) async fn run(arguments: ServeArguments, config: &Config) -> anyhow::Result<()> {
    match arguments.device {
        DeviceWish::All => each::serve_on_each(&arguments).await,
        DeviceWish::Auto | DeviceWish::Cpu | DeviceWish::Cuda(_) => serve(arguments, config).await,
    }
}
