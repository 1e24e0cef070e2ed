//! Who may attach guests to which bridges, and how many.
//!
//! Root always may; of others, whoever a rule names. Names become numbers once, when the configuration is read: a name service
//! that answers late, or not at all, then holds up nobody who asks.
//!
//! **Two questions.** Whether a guest may *come* ([`Rules::allow`], [`Rules::place`]) is asked when it attaches: a rule admits it, and has
//! room. Whether it may *stay* ([`Rules::keeps`]) is asked after each reload, and when vswitchd is started again: a rule admits it. Limits are for
//! those who come; a guest that is there is not sent away because a limit was lowered. A rule whose user or group cannot be found just
//! now admits nobody new, and keeps those whom it admitted before: a name service that fails must not end guests.
//!
//! **What counts where.** A guest counts against the first rule of the file that admits it and has room, or else against the first that
//! admits it. That is worked out anew from all guests in the order of their coming ([`Rules::used`]), so there is no account that could
//! be wrong after a reload. Per user a limit is not enough: by subordinate user ids in a user namespace (subuid(5)) one person is 65,536 users, all of
//! them in the groups of that person. So each rule has a limit for all its guests together, too.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use nix::unistd::{Group, User};
use vswitch::sys::peer::Peer;

use crate::api::{ALL_BRIDGES, Account, AttachInfo, AttachRule};

/// The rules in force.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// As they were written.
    rules: Vec<AttachRule>,
    /// As they are compared; one for each rule.
    by_number: Vec<ByNumber>,
    /// The file they are in.
    path: Option<PathBuf>,
}

/// A rule as it is compared; both must hold where both are given.
#[derive(Clone, Debug)]
struct ByNumber {
    user: Named,
    group: Named,
    /// `None` is every bridge.
    bridge: Option<String>,
}

/// A user or group that a rule names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Named {
    /// None: everybody's.
    Any,
    /// This one.
    Number(u32),
    /// Of a name that cannot be found just now, and was this one before.
    Before(u32),
    /// Of a name that could not be found, now or before.
    Unknown,
}

impl Named {
    fn number(self) -> Option<u32> {
        match self {
            Named::Number(number) | Named::Before(number) => Some(number),
            Named::Any | Named::Unknown => None,
        }
    }

    fn is_known(self) -> bool {
        matches!(self, Named::Any | Named::Number(_))
    }

    fn is(self, which: impl FnOnce(u32) -> bool) -> bool {
        self == Named::Any || self.number().is_some_and(which)
    }
}

/// What a process may do as far as rules see it: its user and its groups.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    /// Effective user id.
    pub uid: u32,
    /// Effective and supplementary group ids.
    pub groups: &'a [u32],
}

impl<'a> Who<'a> {
    /// The process at the other end of a connection; none who has no number here, whatever its groups: its guests could not be counted.
    #[must_use]
    pub fn of(peer: &'a Peer) -> Option<Who<'a>> {
        Some(Who { uid: peer.uid?, groups: &peer.groups })
    }
}

/// A guest that is attached.
#[derive(Clone, Copy, Debug)]
pub struct Guest<'a> {
    /// Who attached it.
    pub who: Who<'a>,
    /// The bridge that it is attached to.
    pub bridge: &'a str,
    /// Ring memory of its port.
    pub ring_bytes: u64,
}

/// What is used by a rule.
#[derive(Clone, Debug, Default)]
pub struct Used {
    ports: u32,
    ring_bytes: u64,
    by_user: HashMap<u32, u32>,
}

impl ByNumber {
    fn is_on(&self, bridge: &str) -> bool {
        self.bridge.as_deref().is_none_or(|allowed| allowed == bridge)
    }

    fn is_for(&self, who: Who<'_>) -> bool {
        self.user.is(|user| who.uid == user) && self.group.is(|group| who.groups.contains(&group))
    }

    fn is_known(&self) -> bool {
        self.user.is_known() && self.group.is_known()
    }
}

/// Groups of a guest's user that are remembered; those that rules name come first.
const GROUPS_MAX: usize = 256;

impl Rules {
    /// The rules, by the numbers of users and groups of this machine, and a warning for each that names nobody. `before` are those that were
    /// in force.
    #[must_use]
    pub fn resolve(rules: &[AttachRule], before: &Rules) -> (Rules, Vec<String>) {
        let user = |name: &str| User::from_name(name).ok().flatten().map(|user| user.uid.as_raw());
        let group = |name: &str| Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw());
        Rules::resolve_by(rules, before, user, group)
    }

    fn resolve_by(
        rules: &[AttachRule],
        before: &Rules,
        user: impl Fn(&str) -> Option<u32>,
        group: impl Fn(&str) -> Option<u32>,
    ) -> (Rules, Vec<String>) {
        let mut warnings = Vec::new();
        let mut named = |what: &str, account: &Option<Account>, find: &dyn Fn(&str) -> Option<u32>| {
            let name = match account {
                None => return Named::Any,
                Some(Account::Number(number)) => return Named::Number(*number),
                Some(Account::Name(name)) => name,
            };
            find(name).map_or_else(
                || {
                    warnings.push(format!(
                        "there is no {what} '{name}': the [[attach]] rule that names it admits nobody new until a reload finds it"
                    ));
                    before.known_as(what, name).map_or(Named::Unknown, Named::Before)
                },
                Named::Number,
            )
        };
        let mut by_number = Vec::new();
        for rule in rules {
            let (user, group) = (named("user", &rule.user, &user), named("group", &rule.group, &group));
            let bridge = Some(rule.bridge.clone()).filter(|bridge| bridge != ALL_BRIDGES);
            by_number.push(ByNumber { user, group, bridge });
        }
        (Rules { rules: rules.to_vec(), by_number, path: None }, warnings)
    }

    /// The same, of this file.
    #[must_use]
    pub fn written_in(self, path: &Path) -> Rules {
        Rules { path: Some(path.to_owned()), ..self }
    }

    /// The file that they are in, if in one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The number of a user or group that a rule names.
    fn known_as(&self, what: &str, name: &str) -> Option<u32> {
        self.rules.iter().zip(&self.by_number).find_map(|(rule, numbers)| {
            let (account, named) = match what {
                "user" => (&rule.user, numbers.user),
                _ => (&rule.group, numbers.group),
            };
            named.number().filter(|_| matches!(account, Some(Account::Name(known)) if known == name))
        })
    }

    /// Whether this process may attach to that bridge.
    #[must_use]
    pub fn allow(&self, peer: &Peer, bridge: &str) -> bool {
        let Some(who) = Who::of(peer) else { return false };
        let admits = |rule: &ByNumber| rule.is_known() && rule.is_on(bridge) && rule.is_for(who);
        who.uid == 0 || self.by_number.iter().any(admits)
    }

    /// Whether this process may attach to anything, and by which rule, if by one.
    #[must_use]
    pub fn know(&self, peer: &Peer) -> Option<Option<usize>> {
        let who = Who::of(peer)?;
        let rule = self.by_number.iter().position(|rule| rule.is_known() && rule.is_for(who));
        if who.uid == 0 { Some(None) } else { rule.map(Some) }
    }

    /// Whether a guest that is attached may stay.
    #[must_use]
    pub fn keeps(&self, who: Who<'_>, bridge: &str) -> bool {
        who.uid == 0 || self.by_number.iter().any(|rule| rule.is_on(bridge) && rule.is_for(who))
    }

    /// Whether every user and group that is named was found.
    #[must_use]
    pub fn are_known(&self) -> bool {
        self.by_number.iter().all(ByNumber::is_known)
    }

    /// Groups, those that rules name first.
    #[must_use]
    pub fn sorted(&self, groups: &[u32]) -> Vec<u32> {
        let is_named = |group: &u32| self.by_number.iter().any(|rule| rule.group.number() == Some(*group));
        let (mut named, others): (Vec<u32>, Vec<u32>) = groups.iter().partition(|group| is_named(group));
        named.extend(others);
        named.truncate(GROUPS_MAX);
        named
    }

    /// What `guests` use of each rule, in the order of their coming.
    #[must_use]
    pub fn used<'a>(&self, guests: impl IntoIterator<Item = Guest<'a>>) -> Vec<Used> {
        let mut used = vec![Used::default(); self.rules.len()];
        for guest in guests {
            let mut first = None;
            let mut with_room = None;
            for (index, rule) in self.by_number.iter().enumerate() {
                if guest.who.uid != 0 && rule.is_on(guest.bridge) && rule.is_for(guest.who) {
                    first = first.or(Some(index));
                    if self.lacks(index, &used[index], guest).is_none() {
                        with_room = Some(index);
                        break;
                    }
                }
            }
            if let Some(index) = with_room.or(first) {
                let used = &mut used[index];
                used.ports += 1;
                used.ring_bytes += guest.ring_bytes;
                *used.by_user.entry(guest.who.uid).or_default() += 1;
            }
        }
        used
    }

    /// Looks for room for a guest that is to be attached. Root's need none.
    ///
    /// # Errors
    /// One line: which limit of which rule it would be over.
    pub fn place(&self, used: &[Used], guest: Guest<'_>) -> Result<(), String> {
        if guest.who.uid == 0 {
            return Ok(());
        }
        let admitting =
            self.by_number.iter().zip(used).enumerate().filter(|(_, (rule, _))| {
                rule.is_known() && rule.is_on(guest.bridge) && rule.is_for(guest.who)
            });
        let mut full = None;
        for (index, (_, used)) in admitting {
            match self.lacks(index, used, guest) {
                None => return Ok(()),
                Some(lacks) => full = full.or(Some(lacks)),
            }
        }
        // A rule that has gone meanwhile has no room either.
        Err(full.unwrap_or_else(|| not_admitted(guest.who, guest.bridge)))
    }

    /// What a rule has no room for, in one line.
    fn lacks(&self, index: usize, used: &Used, guest: Guest<'_>) -> Option<String> {
        let rule = &self.rules[index];
        let theirs = used.by_user.get(&guest.who.uid).copied().unwrap_or(0);
        let memory_max = u64::from(rule.memory_max_mib()) << 20;
        let uid = guest.who.uid;
        if theirs >= rule.user_ports_max() {
            Some(format!(
                "uid {uid} has {theirs} guests attached, user_ports_max of the rule '{rule}': end one first, or have the limit raised"
            ))
        } else if used.ports >= rule.ports_max() {
            Some(format!(
                "{} guests are attached by the rule '{rule}', its ports_max: end one first, or have the limit raised",
                used.ports
            ))
        } else if used.ring_bytes + guest.ring_bytes > memory_max {
            Some(format!(
                "guests attached by the rule '{rule}' take {} MiB of ring memory, and another one {} MiB, which is more than its \
                 memory_max_mib of {}: end one first, or have the limit raised",
                used.ring_bytes.div_ceil(1 << 20),
                guest.ring_bytes.div_ceil(1 << 20),
                rule.memory_max_mib()
            ))
        } else {
            None
        }
    }

    /// The rules as they were written, and what is used of them.
    #[must_use]
    pub fn shown(&self, used: &[Used]) -> Vec<AttachInfo> {
        let info = |(rule, used): (&AttachRule, &Used)| AttachInfo::new(rule, used.ports, used.ring_bytes);
        self.rules.iter().zip(used).map(info).collect()
    }
}

/// Groups that a refusal names.
const GROUPS_TOLD: usize = 8;

/// What a user hears whom no rule admits: the same whether there is such a bridge or not, and nothing that it did not know.
#[must_use]
pub fn not_admitted(who: Who<'_>, bridge: &str) -> String {
    let told = who.groups.iter().take(GROUPS_TOLD).map(u32::to_string).collect::<Vec<_>>().join(", ");
    let more = if who.groups.len() > GROUPS_TOLD { ", …" } else { "" };
    format!(
        "uid {} (groups {told}{more}) is not admitted to bridge '{bridge}': ask the administrator of this host for an attach rule",
        who.uid
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(user: Option<&str>, group: Option<&str>, bridge: &str) -> AttachRule {
        let account = |text: &str| text.parse().unwrap();
        let bridge = bridge.to_owned();
        AttachRule { user: user.map(account), group: group.map(account), bridge, ..AttachRule::default() }
    }

    fn resolved(rules: &[AttachRule]) -> (Rules, Vec<String>) {
        let user = |name: &str| (name == "alice").then_some(1000);
        let group = |name: &str| (name == "kvm").then_some(36);
        Rules::resolve_by(rules, &Rules::default(), user, group)
    }

    fn peer(uid: u32, gid: u32, groups: &[u32]) -> Peer {
        Peer { pid: 1, uid: Some(uid), groups: [&[gid], groups].concat() }
    }

    #[test]
    fn without_rules_only_root_may() {
        let rules = Rules::default();
        assert!(rules.allow(&peer(0, 0, &[]), "br0") && rules.know(&peer(0, 0, &[])) == Some(None));
        assert!(!rules.allow(&peer(1000, 0, &[0]), "br0") && rules.know(&peer(1000, 0, &[0])).is_none());
    }

    #[test]
    fn a_rule_is_for_a_user_or_a_group_or_both() {
        let alice = peer(1000, 1000, &[]);
        let in_kvm = peer(1001, 1001, &[5, 36]);
        let (rules, warnings) = resolved(&[rule(Some("alice"), None, "br0"), rule(None, Some("kvm"), "br1")]);
        assert!(warnings.is_empty());
        assert!(rules.allow(&alice, "br0") && !rules.allow(&alice, "br1"));
        assert!(!rules.allow(&in_kvm, "br0") && rules.allow(&in_kvm, "br1"));
        assert!(rules.allow(&peer(7, 36, &[]), "br1"), "by its first group");

        let (rules, _) = resolved(&[rule(Some("alice"), Some("kvm"), "all")]);
        assert!(!rules.allow(&alice, "br0") && !rules.allow(&in_kvm, "br0"));
        assert!(rules.allow(&peer(1000, 1000, &[36]), "br0"));
    }

    #[test]
    fn who_has_no_number_is_allowed_nothing() {
        let rules = [rule(Some("65534"), None, "all"), rule(None, Some("kvm"), "all")];
        let (rules, _) = resolved(&rules);
        let unmapped = Peer { pid: 1, uid: None, groups: vec![36] };
        assert!(!rules.allow(&unmapped, "br0") && rules.know(&unmapped).is_none());
        assert!(rules.allow(&peer(65534, 65534, &[]), "br0"), "where everybody has one");
    }

    #[test]
    fn who_is_not_there_is_allowed_nothing() {
        let (rules, warnings) =
            resolved(&[rule(Some("bob"), None, "all"), rule(Some("alice"), Some("x"), "all")]);
        assert_eq!(warnings.len(), 2);
        assert!(
            warnings[0].contains("no user 'bob'") && warnings[1].contains("no group 'x'"),
            "{warnings:?}"
        );
        assert!(rules.know(&peer(1000, 0, &[])).is_none() && !rules.are_known());
        assert_eq!(rules.shown(&rules.used([])).len(), 2, "they are shown all the same");
    }

    #[test]
    fn numbers_need_no_name() {
        let (rules, warnings) = resolved(&[rule(Some("12345"), None, "br0")]);
        assert!(warnings.is_empty() && rules.allow(&peer(12345, 12345, &[]), "br0"));
    }

    /// A name service that fails ends no guests, and admits none.
    #[test]
    fn a_name_that_cannot_be_found_now_keeps_those_it_admitted() {
        let rules = [rule(Some("alice"), None, "br0"), rule(None, Some("kvm"), "br1")];
        let (before, _) = resolved(&rules);
        let (now, warnings) = Rules::resolve_by(&rules, &before, |_| None, |_| None);
        assert_eq!(warnings.len(), 2);
        let (alice, in_kvm) = (peer(1000, 1000, &[]), peer(7, 7, &[36]));
        let keeps = |rules: &Rules, peer: &Peer, bridge| rules.keeps(Who::of(peer).unwrap(), bridge);
        assert!(keeps(&now, &alice, "br0") && keeps(&now, &in_kvm, "br1") && !keeps(&now, &alice, "br1"));
        assert!(!now.allow(&alice, "br0") && !now.allow(&in_kvm, "br1"));
        // For as long as it takes.
        let (later, _) = Rules::resolve_by(&rules, &now, |_| None, |_| None);
        assert!(keeps(&later, &alice, "br0"));
        // With the rule goes what was known of its name.
        let (without, _) = Rules::resolve_by(&rules[1..], &later, |_| None, |_| None);
        assert!(!keeps(&without, &alice, "br0") && keeps(&without, &in_kvm, "br1"));
    }

    fn limited(user: Option<&str>, group: Option<&str>, limits: [u32; 3]) -> AttachRule {
        let [ports, user_ports, mib] = limits;
        AttachRule {
            ports_max: Some(ports),
            user_ports_max: Some(user_ports),
            memory_max_mib: Some(mib),
            ..rule(user, group, "all")
        }
    }

    #[test]
    fn a_rule_has_room_for_so_many() {
        let groups = [36];
        let guest =
            |uid, mib: u64| Guest { who: Who { uid, groups: &groups }, bridge: "br0", ring_bytes: mib << 20 };
        let full = |rules: &Rules, guests: &[Guest<'_>], next| {
            rules.place(&rules.used(guests.iter().copied()), next).unwrap_err()
        };
        let (rules, _) = resolved(&[limited(None, Some("kvm"), [3, 2, 10])]);
        let place = |guests: &[Guest<'_>], next| rules.place(&rules.used(guests.iter().copied()), next);
        place(&[guest(1, 1)], guest(1, 1)).unwrap();
        let told = full(&rules, &[guest(1, 1), guest(1, 1)], guest(1, 1));
        assert!(
            told.starts_with(
                "uid 1 has 2 guests attached, user_ports_max of the rule '[[attach]] group = kvm"
            ),
            "{told}"
        );
        // As another user, of whom one person may have thousands.
        place(&[guest(1, 1), guest(1, 1)], guest(2, 1)).unwrap();
        let told = full(&rules, &[guest(1, 1), guest(2, 1), guest(3, 1)], guest(4, 1));
        assert!(
            told.starts_with("3 guests are attached by the rule") && told.contains("its ports_max"),
            "{told}"
        );
        place(&[guest(1, 5)], guest(2, 5)).unwrap();
        let told = full(&rules, &[guest(1, 5)], guest(2, 6));
        assert!(
            told.contains("take 5 MiB of ring memory, and another one 6 MiB")
                && told.contains("memory_max_mib of 10"),
            "{told}"
        );
        place(&[guest(0, 100), guest(0, 100), guest(0, 100)], guest(2, 1)).unwrap();
        place(&[], guest(0, 100)).unwrap();

        // What the first has no room for counts against the second.
        let two = [limited(Some("alice"), None, [1, 1, 10]), limited(None, Some("kvm"), [2, 2, 10])];
        let (rules, _) = resolved(&two);
        let alice = guest(1000, 1);
        let ports = |guests: &[Guest<'_>]| {
            rules.shown(&rules.used(guests.iter().copied())).iter().map(|rule| rule.ports).collect::<Vec<_>>()
        };
        assert_eq!(ports(&[guest(5, 1), alice, alice]), [1, 2]);
        rules.place(&rules.used([alice, alice]), alice).unwrap();
        let told = full(&rules, &[alice; 3], alice);
        assert!(told.contains("user = alice"), "the first rule's: {told}");
        // Those who are there stay when a limit is lowered, and count.
        assert_eq!(ports(&[alice; 5]), [3, 2]);
    }

    proptest! {
        /// Against the words of the documentation.
        #[test]
        fn as_documented(
            rules in prop::collection::vec((prop::option::of(1u32..4), prop::option::of(1u32..4), 0usize..3), 0..6),
            uid in 0u32..4, gid in 0u32..4, groups in prop::collection::vec(0u32..4, 0..3), bridge in 0usize..2,
        ) {
            let bridges = ["br0", "br1", "all"];
            let number = |n: u32| Account::Number(n);
            let written: Vec<AttachRule> = rules
                .iter()
                .filter(|(user, group, _)| user.is_some() || group.is_some())
                .map(|(user, group, b)| AttachRule {
                    user: user.map(number), group: group.map(number), bridge: bridges[*b].to_owned(),
                    ..AttachRule::default()
                })
                .collect();
            let expected = uid == 0 || written.iter().any(|rule| {
                (rule.bridge == "all" || rule.bridge == bridges[bridge])
                    && rule.user.as_ref().is_none_or(|user| *user == number(uid))
                    && rule.group.as_ref().is_none_or(|g| *g == number(gid) || groups.iter().any(|&o| *g == number(o)))
            });
            let peer = peer(uid, gid, &groups);
            let (resolved, _) = resolved(&written);
            prop_assert_eq!(resolved.allow(&peer, bridges[bridge]), expected);
            prop_assert!(!expected || resolved.know(&peer).is_some());
            prop_assert_eq!(resolved.keeps(Who::of(&peer).unwrap(), bridges[bridge]), expected);
        }
    }
}
