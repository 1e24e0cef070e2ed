//! Who may attach guests to which bridges.
//!
//! Root always may; of others, whoever a rule names. Names become numbers once, when the configuration is read: a name service
//! that answers late, or not at all, then holds up nobody who asks.

use nix::unistd::{Group, User};
use vswitch::sys::peer::Peer;

use crate::api::{ALL_BRIDGES, Account, AttachRule};

/// The rules in force.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    rules: Vec<AttachRule>,
    by_number: Vec<ByNumber>,
}

/// A rule as it is compared; both must hold where both are given.
#[derive(Clone, Debug)]
struct ByNumber {
    user: Option<u32>,
    group: Option<u32>,
    /// `None` is every bridge.
    bridge: Option<String>,
}

impl ByNumber {
    fn is_for(&self, peer: &Peer) -> bool {
        self.user.is_none_or(|user| peer.uid == Some(user))
            && self.group.is_none_or(|group| peer.is_in(group))
    }
}

impl Rules {
    /// The rules, by the numbers of users and groups of this machine, and a warning for each that names nobody.
    #[must_use]
    pub fn resolve(rules: &[AttachRule]) -> (Rules, Vec<String>) {
        let user = |name: &str| User::from_name(name).ok().flatten().map(|user| user.uid.as_raw());
        let group = |name: &str| Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw());
        Rules::resolve_by(rules, user, group)
    }

    fn resolve_by(
        rules: &[AttachRule],
        user: impl Fn(&str) -> Option<u32>,
        group: impl Fn(&str) -> Option<u32>,
    ) -> (Rules, Vec<String>) {
        let mut warnings = Vec::new();
        let mut number = |what: &str, account: &Option<Account>, find: &dyn Fn(&str) -> Option<u32>| {
            match account {
                None => Some(None),
                Some(Account::Number(number)) => Some(Some(*number)),
                Some(Account::Name(name)) => {
                    let found = find(name);
                    if found.is_none() {
                        warnings.push(format!(
                            "there is no {what} '{name}': the [[attach]] rule that names it allows nothing until a reload finds it"
                        ));
                    }
                    found.map(Some)
                }
            }
        };
        let mut by_number = Vec::new();
        for rule in rules {
            let (user, group) = (number("user", &rule.user, &user), number("group", &rule.group, &group));
            let bridge = Some(rule.bridge.clone()).filter(|bridge| bridge != ALL_BRIDGES);
            if let (Some(user), Some(group)) = (user, group) {
                by_number.push(ByNumber { user, group, bridge });
            }
        }
        (Rules { rules: rules.to_vec(), by_number }, warnings)
    }

    /// As they were written.
    #[must_use]
    pub fn written(&self) -> &[AttachRule] {
        &self.rules
    }

    /// Whether this process may attach to that bridge.
    #[must_use]
    pub fn allow(&self, peer: &Peer, bridge: &str) -> bool {
        let on = |rule: &ByNumber| rule.bridge.as_deref().is_none_or(|allowed| allowed == bridge);
        self.is_allowed(peer, on)
    }

    /// Whether this process may attach to anything.
    #[must_use]
    pub fn know(&self, peer: &Peer) -> bool {
        self.is_allowed(peer, |_| true)
    }

    /// Nobody is who has no number here, whatever groups he is in: his guests could not be counted.
    fn is_allowed(&self, peer: &Peer, on: impl Fn(&ByNumber) -> bool) -> bool {
        let by_rule = || self.by_number.iter().any(|rule| on(rule) && rule.is_for(peer));
        peer.uid.is_some_and(|uid| uid == 0 || by_rule())
    }
}

/// A user as people know him, such as `user alice (1000)`. Asks the name service.
#[must_use]
pub fn who(uid: u32) -> String {
    match name_of(uid) {
        Some(name) => format!("user {name} ({uid})"),
        None => format!("user {uid}"),
    }
}

/// The user in a rule that allows him, as TOML.
#[must_use]
pub fn in_rule(uid: u32) -> String {
    name_of(uid).map_or_else(|| uid.to_string(), |name| format!("\"{name}\""))
}

fn name_of(uid: u32) -> Option<String> {
    User::from_uid(uid.into()).ok().flatten().map(|user| user.name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(user: Option<&str>, group: Option<&str>, bridge: &str) -> AttachRule {
        let account = |text: &str| text.parse().unwrap();
        AttachRule { user: user.map(account), group: group.map(account), bridge: bridge.to_owned() }
    }

    fn resolved(rules: &[AttachRule]) -> (Rules, Vec<String>) {
        let user = |name: &str| (name == "alice").then_some(1000);
        let group = |name: &str| (name == "kvm").then_some(36);
        Rules::resolve_by(rules, user, group)
    }

    fn peer(uid: u32, gid: u32, groups: &[u32]) -> Peer {
        Peer { pid: 1, uid: Some(uid), groups: [&[gid], groups].concat() }
    }

    #[test]
    fn without_rules_only_root_may() {
        let rules = Rules::default();
        assert!(rules.allow(&peer(0, 0, &[]), "br0") && rules.know(&peer(0, 0, &[])));
        assert!(!rules.allow(&peer(1000, 0, &[0]), "br0") && !rules.know(&peer(1000, 0, &[0])));
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
        assert!(!rules.allow(&unmapped, "br0") && !rules.know(&unmapped));
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
        assert!(!rules.know(&peer(1000, 0, &[])));
        assert_eq!(rules.written().len(), 2, "they are shown all the same");
    }

    #[test]
    fn numbers_need_no_name() {
        let (rules, warnings) = resolved(&[rule(Some("12345"), None, "br0")]);
        assert!(warnings.is_empty() && rules.allow(&peer(12345, 12345, &[]), "br0"));
        assert_eq!(
            (who(3_999_999_999).as_str(), in_rule(3_999_999_999).as_str()),
            ("user 3999999999", "3999999999")
        );
        assert_eq!((who(0).as_str(), in_rule(0).as_str()), ("user root (0)", "\"root\""));
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
            prop_assert!(!expected || resolved.know(&peer));
        }
    }
}
