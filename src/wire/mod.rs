//! One protocol a file: views over bytes, no allocation. Byte order never leaves this folder.
//!
//! A header is read through a checked view (`…::new_checked`, or etherparse's `*HeaderSlice`, which are
//! exactly that for IP, TCP and UDP and cost 2 ns), and changed through setters that take a fixed-size array, so
//! that neither can run out of bounds. [`layers`] puts the views together: where in a frame does what begin.
//! etherparse's `SlicedPacket` was not taken for that: 34 ns a frame, and it stops at headers it does not know.

pub mod arp;
pub mod ethernet;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod layers;
pub mod ndisc;
pub mod tcp;
pub mod udp;
