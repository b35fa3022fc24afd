//! The conformance suite of this module on the host and against the agent as a process of the host; and
//! what happens around the end of a machine.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::agent::testing::{HostAgent, refusing};
use crate::host::Host;

#[path = "../../tests/conformance/net.rs"]
mod conformance;

/// The place whose sockets an agent makes.
struct Guest(End);

impl Guest {
    fn of(agent: &HostAgent) -> Self {
        Guest(End::guest(&agent.client))
    }
}

impl Net for Guest {
    fn end(&self) -> End {
        self.0.clone()
    }
}

/// A test of the suite, on the host and in a guest. The agent is alive afterwards, holds nothing, and
/// ends well.
macro_rules! conformance {
    ($($name:ident($($arg:expr)?);)*) => {
        mod on_host {
            $(#[test]
            fn $name() {
                let dir = tempfile::tempdir().unwrap();
                let _dir = dir.path().to_str().unwrap();
                super::conformance::$name(&super::Host, conformance!(_dir $($arg)?));
            })*
        }

        mod in_guest {
            $(#[test]
            fn $name() {
                let dir = tempfile::tempdir().unwrap();
                let _dir = dir.path().to_str().unwrap();
                super::in_guest_of_its_own(|guest| {
                    super::conformance::$name(guest, conformance!(_dir $($arg)?));
                });
            })*
        }
    };
    ($dir:ident) => { $dir };
    ($dir:ident $arg:expr) => { $arg };
}

fn in_guest_of_its_own(test: impl FnOnce(&Guest)) {
    let mut agent = HostAgent::start();
    let before = descriptors(agent.pid());
    test(&Guest::of(&agent));
    agent.client.ping(Duration::from_secs(30)).unwrap();
    assert_eq!(agent.client.operations(), 0);
    // What was closed is closed: the answer to the ping came behind it. Only a connection whose peer
    // has just gone may have had bytes left to send.
    let start = std::time::Instant::now();
    while descriptors(agent.pid()) != before {
        assert!(start.elapsed() < Duration::from_secs(20), "{} descriptors", descriptors(agent.pid()));
        std::thread::yield_now();
    }
    assert_eq!(agent.stop(), Some(0));
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

conformance! {
    tcp_carries_bytes_both_ways();
    tcp_over_ipv6();
    tcp_is_byte_exact(20_000_003);
    tcp_halves_end_one_by_one();
    tcp_shutdown_of_reading();
    tcp_refused();
    tcp_binding_fails();
    tcp_connecting_takes_no_longer();
    tcp_timeouts();
    tcp_peek_and_options();
    tcp_without_waiting();
    tcp_resets();
    tcp_lingering();
    tcp_listeners_are_shared();
    tcp_many_at_once(64);
    r4_1_connections_in_turn(10_000);
    udp_carries_datagrams();
    udp_sizes();
    udp_connected();
    udp_options();
    udp_floods_are_dropped(5000);
    unix_streams();
    unix_failures();
    unix_datagrams();
    names();
    relays(&crate::host::Host);
}

#[test]
fn a_forward_leads_out_of_the_guest() {
    let agent = HostAgent::start();
    let guest = Guest::of(&agent);
    conformance::relays(&Backwards(&guest), &guest);
}

/// A host whose ports are exposed in a guest.
struct Backwards<'a>(&'a Guest);

impl Net for Backwards<'_> {
    fn end(&self) -> End {
        Host.end()
    }

    fn expose(&self, guest: impl LocalAddr, host: impl ToSocketAddrs) -> std::io::Result<Exposed> {
        self.0.forward(guest, host)
    }
}

#[test]
fn handles_go_wherever_std_s_do() {
    fn everywhere<T: Send + Sync + std::fmt::Debug + 'static>() {}
    everywhere::<TcpStream>();
    everywhere::<TcpListener>();
    everywhere::<UdpSocket>();
    everywhere::<UnixStream>();
    everywhere::<UnixListener>();
    everywhere::<UnixDatagram>();
    everywhere::<Exposed>();
    let agent = HostAgent::start();
    let guest: Arc<dyn Net> = Arc::new(Guest::of(&agent));
    let listener = guest.tcp_listener(&"127.0.0.1:0".to_socket_addrs().unwrap()).unwrap();
    guest.connect_tcp(listener.local_addr().unwrap()).unwrap();
}

/// Every number that Linux has, as the answer to everything that makes a socket.
#[test]
fn every_errno_has_the_kind_of_std() {
    for errno in 1..=133 {
        let client = refusing(errno);
        let on = Guest(End::guest(&client));
        let at = std::net::SocketAddr::from(([127, 0, 0, 1], 9));
        let errors = [
            on.connect_tcp(at).map(drop),
            on.connect_tcp_timeout(&at, std::time::Duration::from_secs(60)).map(drop),
            on.listen_tcp(at).map(drop),
            on.bind_udp(at).map(drop),
            on.lookup_host(("host", 9)).map(drop),
            on.connect_unix("/s").map(drop),
            on.listen_unix("/s").map(drop),
            on.bind_unix_datagram("/s").map(drop),
            on.unbound_unix_datagram().map(drop),
        ];
        for (n, result) in errors.into_iter().enumerate() {
            let (error, std) = (result.unwrap_err(), std::io::Error::from_raw_os_error(errno));
            assert_eq!(error.kind(), std.kind(), "operation {n}, errno {errno}: {error}");
            assert_eq!(raw_os_error(&error), Some(errno), "operation {n}: {error}");
        }
    }
}
