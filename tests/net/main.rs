//! The suite for sockets on a machine, and what only a machine shows.

#[path = "../conformance/net.rs"]
mod conformance;
mod machine;
mod names;
#[allow(dead_code)]
#[path = "../machine/support.rs"]
mod support;

use cc::net::*;

macro_rules! in_machine {
    ($($name:ident($($arg:expr)?);)*) => {
        $(#[test]
        fn $name() {
            let dir = "/tmp";
            let _ = dir;
            conformance::$name(support::shared(), in_machine!(dir $($arg)?));
        })*
    };
    ($dir:ident) => { $dir };
    ($dir:ident $arg:expr) => { $arg };
}

in_machine! {
    tcp_carries_bytes_both_ways();
    tcp_over_ipv6();
    tcp_is_byte_exact(4_000_003);
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
    tcp_many_at_once(32);
    r4_1_connections_in_turn(1000);
    udp_carries_datagrams();
    udp_sizes();
    udp_connected();
    udp_options();
    udp_floods_are_dropped(2000);
    unix_streams();
    unix_failures();
    unix_datagrams();
    names();
    relays(&cc::Host);
}
