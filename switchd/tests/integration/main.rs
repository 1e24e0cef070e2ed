//! vswitchd and vswitchctl as a user meets them: real binaries, real interfaces, in namespaces that the tests make.
//!
//! Needs root, iproute2, ethtool, ping and curl; QEMU for guests, Open vSwitch for one comparison and Linux 6.6 for the host's silence. A test that
//! cannot run is reported as ignored, by the name of what is missing, and only those of [`harness::EXPECTED_SKIPS`] may be.
//!
//! `cargo test -p switchd --test integration [FILTER]`. `VSWITCH_TEST_SEED=N` (or `random`) changes generated frames.
#![allow(missing_docs, missing_debug_implementations, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::cast_possible_truncation)]
#![allow(clippy::disallowed_methods)]

mod attach;
mod cli;
mod explained;
mod failed;
mod faults;
mod frames;
mod guests;
mod hanging;
mod harness;
mod host;
mod identity;
mod interfaces;
mod lifecycle;
mod macvtap;
mod migration;
mod neighbours;
mod oracle;
mod overlays;
mod path_mtu;
mod places;
mod ports;
mod remains;
mod rings;
mod scenarios;
mod settings;
mod shortage;
mod sockets;
mod traffic;
mod tunnels;
mod vde;
mod vhost_user;
mod vlan;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

use harness::{Outcome, conclude, net};

type Test = fn() -> Outcome;

/// Every test but the pairs of [`traffic::PAIRS`].
const TESTS: &[(&str, Test)] = &[
    ("harness::only_expected_skips", harness::only_expected_skips),
    ("oracle::as_linux_bridge", oracle::as_linux_bridge),
    ("oracle::as_linux_bridge_with_two_workers", oracle::as_linux_bridge_with_two_workers),
    ("vlan::as_open_vswitch", vlan::as_open_vswitch),
    ("settings::isolated", settings::isolated),
    ("settings::hairpin", settings::hairpin),
    ("settings::flood", settings::flood),
    ("settings::learning", settings::learning),
    ("settings::static_entries_and_ageing", settings::static_entries_and_ageing),
    ("settings::ageing_by_bridge", settings::ageing_by_bridge),
    ("settings::flushes", settings::flushes),
    ("settings::odd_addresses", settings::odd_addresses),
    ("settings::vlan_rules", settings::vlan_rules),
    ("settings::learning_by_vlan", settings::learning_by_vlan),
    ("settings::bridges_are_separate", settings::bridges_are_separate),
    ("settings::counters", settings::counters),
    ("settings::static_entries_follow", settings::static_entries_follow),
    ("places::check_and_adding_agree", places::check_and_adding_agree),
    ("places::a_reload_passes_them_on", places::a_reload_passes_them_on),
    ("ports::not_every_interface", ports::not_every_interface),
    ("ports::one_interface_one_port", ports::one_interface_one_port),
    ("interfaces::carrying_others", interfaces::carrying_others),
    ("interfaces::several_names", interfaces::several_names),
    ("interfaces::both_ends_of_a_tap", interfaces::both_ends_of_a_tap),
    ("interfaces::addresses_and_mtu", interfaces::addresses_and_mtu),
    ("cli::bridges", cli::bridges),
    ("cli::tap_ports", cli::tap_ports),
    ("cli::packet_ports", cli::packet_ports),
    ("cli::internal_ports", cli::internal_ports),
    ("cli::all_or_nothing", cli::all_or_nothing),
    ("cli::vlan_options", cli::vlan_options),
    ("cli::stations", cli::stations),
    ("cli::status_and_stats", cli::status_and_stats),
    ("cli::namespaces_and_veths", cli::namespaces_and_veths),
    ("cli::api", cli::api),
    ("lifecycle::starts_from_a_configuration", lifecycle::starts_from_a_configuration),
    ("lifecycle::starts_without_a_configuration", lifecycle::starts_without_a_configuration),
    ("lifecycle::check", lifecycle::check),
    ("lifecycle::a_failed_start_leaves_nothing", lifecycle::a_failed_start_leaves_nothing),
    ("lifecycle::second_start_is_refused", lifecycle::second_start_is_refused),
    ("lifecycle::clean_end", lifecycle::clean_end),
    ("lifecycle::killed_and_started_again", lifecycle::killed_and_started_again),
    ("lifecycle::reload_without_loss", lifecycle::reload_without_loss),
    ("lifecycle::stations_by_reload", lifecycle::stations_by_reload),
    ("lifecycle::refused_reload", lifecycle::refused_reload),
    ("lifecycle::tells_the_service_manager", lifecycle::tells_the_service_manager),
    ("lifecycle::options", lifecycle::options),
    ("lifecycle::ends_under_a_flood", lifecycle::ends_under_a_flood),
    ("lifecycle::idle", lifecycle::idle),
    ("failed::the_others_start", failed::the_others_start),
    ("failed::comes_by_itself", failed::comes_by_itself),
    ("failed::strict", failed::strict),
    ("failed::reload_is_all_or_nothing", failed::reload_is_all_or_nothing),
    ("hanging::senders_paths", hanging::senders_paths),
    ("hanging::the_operators_own", hanging::the_operators_own),
    ("host::stays_silent", host::stays_silent),
    ("host::stays_silent_in_ipv6", host::stays_silent_in_ipv6),
    ("faults::interface_deleted", faults::interface_deleted),
    ("faults::namespace_deleted", faults::namespace_deleted),
    ("faults::reload_revives_a_dead_tap", faults::reload_revives_a_dead_tap),
    ("faults::link_down_and_up", faults::link_down_and_up),
    ("faults::missed_while_stopped", faults::missed_while_stopped),
    ("faults::mtu_changed_under_traffic", faults::mtu_changed_under_traffic),
    ("faults::tcp_through_changes", faults::tcp_through_changes),
    ("faults::a_thousand_ports", faults::a_thousand_ports),
    ("faults::a_million_addresses", faults::a_million_addresses),
    ("faults::full_table", faults::full_table),
    ("faults::nothing_piles_up", faults::nothing_piles_up),
    ("shortage::no_thread_to_be_had", shortage::no_thread_to_be_had),
    ("shortage::locks_of_others", shortage::locks_of_others),
    ("rings::a_frame_stops_one", rings::a_frame_stops_one),
    ("rings::a_frame_stops_one_without_a_filter", rings::a_frame_stops_one_without_a_filter),
    ("shortage::no_descriptor_to_be_had", shortage::no_descriptor_to_be_had),
    ("shortage::names_that_a_terminal_would_obey", shortage::names_that_a_terminal_would_obey),
    ("rings::as_cheap_with_many_workers", rings::as_cheap_with_many_workers),
    ("tunnels::between_two_of_ours", tunnels::between_two_of_ours),
    ("tunnels::with_the_kernel", tunnels::with_the_kernel),
    ("tunnels::three_hosts", tunnels::three_hosts),
    ("tunnels::remotes_change", tunnels::remotes_change),
    ("tunnels::strange_datagrams", tunnels::strange_datagrams),
    ("tunnels::made_up_senders", tunnels::made_up_senders),
    ("tunnels::refused", tunnels::refused),
    ("tunnels::underlay_deleted", tunnels::underlay_deleted),
    ("tunnels::by_reload", tunnels::by_reload),
    ("tunnels::mapped_by_reload", tunnels::mapped_by_reload),
    ("tunnels::in_place_by_reload", tunnels::in_place_by_reload),
    ("tunnels::counted_by_remote", tunnels::counted_by_remote),
    ("overlays::every_kind", overlays::every_kind),
    ("overlays::outer_packets", overlays::outer_packets),
    ("overlays::groups", overlays::groups),
    ("overlays::vlans_to_networks", overlays::vlans_to_networks),
    ("overlays::with_open_vswitch", overlays::with_open_vswitch),
    ("overlays::underlay_comes_back", overlays::underlay_comes_back),
    ("overlays::gre_between_pairs", overlays::gre_between_pairs),
    ("overlays::lost_fragments", overlays::lost_fragments),
    ("overlays::numbers_go_on", overlays::numbers_go_on),
    ("overlays::sockets_keep_out_of_each_others_way", overlays::sockets_keep_out_of_each_others_way),
    ("overlays::ports_follow_their_interface", overlays::ports_follow_their_interface),
    ("overlays::an_underlay_may_come_later", overlays::an_underlay_may_come_later),
    ("overlays::refused", overlays::refused),
    ("overlays::as_wireshark_reads", overlays::as_wireshark_reads),
    ("overlays::two_tunnels_to_one_host", overlays::two_tunnels_to_one_host),
    ("path_mtu::senders_are_told", path_mtu::senders_are_told),
    ("path_mtu::tcp_over_a_smaller_underlay", path_mtu::tcp_over_a_smaller_underlay),
    ("path_mtu::as_linux_tells", path_mtu::as_linux_tells),
    ("path_mtu::by_mode", path_mtu::by_mode),
    ("path_mtu::connections_are_clamped", path_mtu::connections_are_clamped),
    ("path_mtu::the_underlay_shrinks", path_mtu::the_underlay_shrinks),
    ("path_mtu::many_ways_change_at_once", path_mtu::many_ways_change_at_once),
    ("path_mtu::operators_are_told", path_mtu::operators_are_told),
    ("identity::after_a_restart", identity::after_a_restart),
    ("identity::by_bridge_port_and_daemon", identity::by_bridge_port_and_daemon),
    ("identity::announcements", identity::announcements),
    ("neighbours::suppressed", neighbours::suppressed),
    ("neighbours::a_silent_newcomer", neighbours::a_silent_newcomer),
    ("neighbours::duplicates_are_found", neighbours::duplicates_are_found),
    ("neighbours::static_neighbours", neighbours::static_neighbours),
    ("neighbours::a_flood_is_bounded", neighbours::a_flood_is_bounded),
    ("neighbours::vlans", neighbours::vlans),
    ("neighbours::by_reload", neighbours::by_reload),
    ("vhost_user::options", vhost_user::options),
    ("vhost_user::memory_is_bounded", vhost_user::memory_is_bounded),
    ("vhost_user::the_switch_listens", vhost_user::the_switch_listens),
    ("vhost_user::qemu_listens", vhost_user::qemu_listens),
    ("vhost_user::guests_among_themselves", vhost_user::guests_among_themselves),
    ("vhost_user::dpdk_forwards", vhost_user::dpdk_forwards),
    ("migration::on_one_switch", migration::on_one_switch),
    ("migration::to_another_switch", migration::to_another_switch),
    ("traffic::superframes_stay_whole", traffic::superframes_stay_whole),
    ("traffic::tunnels_of_hosts", traffic::tunnels_of_hosts),
    ("traffic::vlans_over_a_trunk", traffic::vlans_over_a_trunk),
    ("traffic::tags_on_the_wire", traffic::tags_on_the_wire),
    ("traffic::too_long_for_one_port", traffic::too_long_for_one_port),
    ("traffic::order_is_kept", traffic::order_is_kept),
    ("traffic::one_worker_a_flow", traffic::one_worker_a_flow),
    ("frames::big_tcp", frames::big_tcp),
    ("frames::whole_and_fragmented_datagrams", frames::whole_and_fragmented_datagrams),
    ("traffic::a_guest_behind_a_tap", traffic::a_guest_behind_a_tap),
    ("attach::a_guest_comes_and_goes", attach::a_guest_comes_and_goes),
    ("attach::superframes_between_guests", attach::superframes_between_guests),
    ("attach::by_rules", attach::by_rules),
    ("attach::by_limits", attach::by_limits),
    ("attach::rules_after_a_crash", attach::rules_after_a_crash),
    ("attach::users_without_a_number", attach::users_without_a_number),
    ("attach::many_at_once", attach::many_at_once),
    ("attach::hostile_clients", attach::hostile_clients),
    ("attach::vswitchd_killed", attach::vswitchd_killed),
    ("attach::guests_survive_vswitchd", attach::guests_survive_vswitchd),
    ("attach::persistent_devices", attach::persistent_devices),
    ("attach::arguments", attach::arguments),
    ("attach::real_guests", attach::real_guests),
    ("remains::of_ports_without_descriptors", remains::of_ports_without_descriptors),
    ("guests::behind_a_tap", guests::behind_a_tap),
    ("scenarios::everybody_reaches_everybody", scenarios::everybody_reaches_everybody),
    ("scenarios::guests_in_vlans", scenarios::guests_in_vlans),
    ("scenarios::the_switch_comes_back", scenarios::the_switch_comes_back),
    ("explained::command_lines", explained::command_lines),
    ("explained::libvirt_xml", explained::libvirt_xml),
    ("macvtap::as_asked", macvtap::as_asked),
    ("macvtap::lower_comes_and_goes", macvtap::lower_comes_and_goes),
    ("macvtap::many_stations", macvtap::many_stations),
    ("macvtap::vlans_and_mtu", macvtap::vlans_and_mtu),
    ("macvtap::one_that_exists", macvtap::one_that_exists),
    ("macvtap::host_keeps_its_interface", macvtap::host_keeps_its_interface),
    ("macvtap::one_wire", macvtap::one_wire),
    ("macvtap::missed_by_one_that_comes_back", macvtap::missed_by_one_that_comes_back),
    ("macvtap::tried_now_and_then", macvtap::tried_now_and_then),
    ("sockets::as_asked", sockets::as_asked),
    ("sockets::descriptors_are_refused", sockets::descriptors_are_refused),
    ("sockets::senders_without_a_number", sockets::senders_without_a_number),
    ("sockets::peers_come_and_go", sockets::peers_come_and_go),
    ("sockets::hostile_peers", sockets::hostile_peers),
    ("sockets::restarted", sockets::restarted),
    ("sockets::without_privileges", sockets::without_privileges),
    ("sockets::datagrams", sockets::datagrams),
    ("sockets::nobody_speaks_for_a_peer_that_goes", sockets::nobody_speaks_for_a_peer_that_goes),
    ("sockets::guests", sockets::guests),
    ("sockets::a_guest_with_jumbo_frames", sockets::a_guest_with_jumbo_frames),
    ("sockets::a_guest_outlives_the_switch", sockets::a_guest_outlives_the_switch),
    ("vde::as_asked", vde::as_asked),
    ("vde::plugs_come_and_go", vde::plugs_come_and_go),
    ("vde::hostile_plugs", vde::hostile_plugs),
    ("vde::descriptors_are_refused", vde::descriptors_are_refused),
    ("vde::restarted", vde::restarted),
    ("vde::without_privileges", vde::without_privileges),
    ("vde::real_plugs", vde::real_plugs),
    ("vde::into_another_switch", vde::into_another_switch),
    ("vde::into_another_users_switch", vde::into_another_users_switch),
    ("vde::a_guest", vde::a_guest),
];

/// Tests that run at the same time: they mostly wait, but too many would take the CPU from each other's switches.
const AT_ONCE: usize = 3;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    if !arguments.list {
        net::sweep();
    }
    arguments.test_threads.get_or_insert(AT_ONCE);
    let trials =
        TESTS.iter().map(|&(name, test)| Trial::ignorable_test(name, move || conclude(name, test())));
    let pairs = traffic::PAIRS
        .iter()
        .map(|&(name, a, b)| Trial::ignorable_test(name, move || conclude(name, traffic::pair(a, b))));
    libtest_mimic::run(&arguments, trials.chain(pairs).collect()).exit_code()
}
