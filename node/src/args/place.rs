//! Where to listen, as it is typed.

use std::net::SocketAddr;

/// Reads where HTTP is to be spoken.
pub(super) fn host_port(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        // A port alone, or a name: that of this machine is meant most often.
        let port = text.rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
        let port = port.unwrap_or(8080);
        format!("it is written as an IP address and a port, as 127.0.0.1:{port}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_forgets_the_address_is_told_the_whole() {
        for typed in ["8081", ":8081", "localhost:8081"] {
            assert!(host_port(typed).unwrap_err().contains("127.0.0.1:8081"), "{typed}");
        }
        assert!(host_port("nonsense").unwrap_err().contains("127.0.0.1:8080"));
        assert_eq!(host_port("0.0.0.0:9").unwrap().port(), 9);
    }
}
