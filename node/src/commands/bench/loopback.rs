//! Bytes that cross this machine's loopback device, as the system counts them.

use std::fs;

/// Bytes so far; `None` where the system does not say. Everybody on the machine counts, with the
/// headers of packets and what the network says by itself, so of several measurements the smallest
/// is the best.
pub(super) fn bytes() -> Option<u64> {
    received("lo", &fs::read_to_string("/proc/net/dev").ok()?)
}

/// The first column behind the device's name: bytes that it has received, so that each counts once.
fn received(device: &str, text: &str) -> Option<u64> {
    let line =
        text.lines().find_map(|line| line.trim_start().strip_prefix(device)?.strip_prefix(':'));
    line?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs
  low:     999       1    0    0    0     0          0         0      999       1    0
    lo: 1234567    2071    0    0    0     0          0         0  1234567    2071    0
  eth0:98765432   10000    0    0    0     0          0         0     5000      40    0
";

    #[test]
    fn a_device_is_found_by_its_whole_name() {
        assert_eq!(received("lo", TEXT), Some(1_234_567));
        assert_eq!(received("eth0", TEXT), Some(98_765_432));
        assert_eq!(received("eth1", TEXT), None);
        assert_eq!(received("lo", "lo:"), None);
    }
}
