//! The daemon and the command line of the vswitch userspace switch.
//!
//! The binaries are a line each; everything is here, so that it can be tested and so that both ends of the
//! control socket are made of the same types:
//!
//! | module | what |
//! |---|---|
//! | [`api`] | the interface once: command-line options, JSON, TOML and schema are the same types |
//! | [`attach`] | guests that attach themselves: rules, socket, and the helper that QEMU starts |
//! | [`config`] | the configuration file, checked as a whole |
//! | [`plan`] | the steps between two layouts, all or none |
//! | [`daemon`] | the switch, who asked for what, requests |
//! | [`calls`] | calls into the daemon, which may wait, on threads of their own |
//! | [`plain`] | text from outside, made harmless for terminals and logs |
//! | [`server`] | HTTP and JSON over the control socket |
//! | [`socket`] | a socket's file and lock |
//! | [`vswitchd`] | start, signals, end |
//! | [`client`] | the other end of the socket |
//! | [`cli`] | the definitions of vswitchctl: parser, help, completions, man pages |
//! | [`ctl`] | what its commands do |
//!
//! Other ways in (personalities with other programs' command lines) belong beside [`ctl`], as further clients of the same socket.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod api;
pub mod attach;
pub mod calls;
pub mod cli;
pub mod client;
mod compare;
pub mod config;
pub mod control;
pub mod ctl;
pub mod daemon;
pub mod log;
pub mod plain;
pub mod plan;
pub mod server;
pub mod socket;
pub mod vswitchd;

use plain::one_line;
