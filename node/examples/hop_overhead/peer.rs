//! Other processes of this program, and what they spend.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command as Process, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use umbel_net::{Link, LinkProtocol, Multiaddr, Network};
use umbel_protocol::PeerId;

/// What the system calls a thread's giving up its core to wait.
const WAITED: &str = "voluntary_ctxt_switches:";

/// A process of this program, which ends with its handle.
pub(crate) struct Peer {
    pub(crate) child: Child,
    pub(crate) id: PeerId,
    pub(crate) address: Multiaddr,
}

impl Peer {
    pub(crate) fn start(arguments: [&str; 3]) -> anyhow::Result<Self> {
        let mut process = Process::new(std::env::current_exe()?);
        process.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = process.spawn().context("cannot start this program again")?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let (id, address) = line.trim().split_once(' ').context("a peer did not start")?;
        Ok(Self { child, id: id.parse()?, address: address.parse()? })
    }

    /// A link to it. It prints its address before its driver accepts links, and a link that is refused
    /// says nothing of when the next would be taken: so it is tried again after a moment.
    pub(crate) async fn dial(&self, client: &Network) -> anyhow::Result<Link> {
        const TRIES: u32 = 100;
        const BETWEEN_TRIES: Duration = Duration::from_millis(20);
        let addresses = [self.address.clone()];
        for _ in 1..TRIES {
            let link = client.open_link(self.id, &addresses, LinkProtocol::Session).await;
            if let Ok(link) = link {
                return Ok(link);
            }
            tokio::time::sleep(BETWEEN_TRIES).await;
        }
        let last = client.open_link(self.id, &addresses, LinkProtocol::Session).await;
        last.context("a peer does not accept links")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

/// What the system says of a process.
#[derive(Clone, Copy)]
pub(crate) struct Spent {
    /// Microseconds of processor time.
    pub(crate) processor_us: f64,
    /// How often a thread waited and was woken.
    pub(crate) wakes: f64,
}

impl Spent {
    /// Of all threads of a process so far; `None` where the system does not say.
    pub(crate) fn so_far(process: u32) -> Option<Self> {
        let (mut nanoseconds, mut wakes) = (0.0, 0.0);
        for task in fs::read_dir(format!("/proc/{process}/task")).ok()? {
            let task = task.ok()?.path();
            let schedule = fs::read_to_string(task.join("schedstat")).ok()?;
            nanoseconds += schedule.split_whitespace().next()?.parse::<f64>().ok()?;
            let status = fs::read_to_string(task.join("status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix(WAITED))?;
            wakes += line.trim().parse::<f64>().ok()?;
        }
        Some(Self { processor_us: nanoseconds / 1e3, wakes })
    }
}
