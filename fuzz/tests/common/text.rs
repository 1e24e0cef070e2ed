//! Bridges, ports and stations as text, good and spoilt. What JSON and TOML share is written the same in both.

/// Which fields beside the necessary ones, and which values.
pub(crate) type Fields = Vec<(u8, u8)>;

/// Whether to overwrite bytes of a text at all, and which.
pub(crate) type Spoil = (u8, Vec<(u16, u8)>);

type Field = (&'static str, &'static [&'static str]);

/// What has fields.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Daemon,
    Bridge,
    Port,
    Station,
    Neighbour,
    Attach,
}

pub(crate) const KINDS: [Kind; 6] =
    [Kind::Daemon, Kind::Bridge, Kind::Port, Kind::Station, Kind::Neighbour, Kind::Attach];

const BRIDGES: &[&str] = &[r#""br0""#, r#""br1""#, r#""br2""#];
const PORTS: &[&str] = &[r#""p0""#, r#""p1""#, r#""p2""#, r#""veth0""#];
const MACS: &[&str] = &[r#""02:00:00:00:00:05""#, r#""02-00-00-00-00-0A""#];
const VIDS: &[&str] = &["1", "10", "4094", r#""20""#];
const LISTS: &[&str] = &[r#""10,20-30""#, r#"[10, "20-30"]"#, "7", r#""1-4094""#];
const FLAGS: &[&str] = &["true", "false"];

const DAEMON: &[Field] = &[
    ("workers", &[r#""auto""#, "2", r#""3""#]),
    ("cpus", &[r#""0,2-3""#, "[0, 1]", "5"]),
    ("poll", &[r#""adaptive""#, r#""busy""#, r#""wait""#]),
    ("log", &[r#""info""#, r#""info,vswitch=debug""#]),
    ("socket", &[r#""/run/s""#]),
    ("attach_socket", &[r#""/run/a""#, r#""none""#, r#""""#]),
];
const BRIDGE: &[Field] = &[
    ("name", BRIDGES),
    ("vlan_filtering", FLAGS),
    ("default_pvid", VIDS),
    ("ageing_secs", &["0", "300", "4294967295"]),
    ("fdb_max", &["1", "65536", "4294967295"]),
];
const PATHS: &[&str] = &[r#""/run/s""#, r#""/run/t""#, r#""s""#];
const PORT: &[Field] = &[
    ("name", PORTS),
    ("bridge", BRIDGES),
    (
        "type",
        &[
            r#""tap""#,
            r#""packet""#,
            r#""macvtap""#,
            r#""internal""#,
            r#""stream""#,
            r#""dgram""#,
            r#""vde""#,
        ],
    ),
    ("ifname", &[r#""veth0""#, r#""veth1""#, r#""p0""#]),
    ("netns", &[r#""n1""#, r#""/run/netns/n1""#, r#""/proc/1/ns/net""#]),
    ("mac", MACS),
    ("mtu", &["68", "1500", "65535"]),
    ("address", &[r#""10.0.0.1/24""#, r#"["10.0.0.1/8", "fd00::1/64"]"#, "[]"]),
    ("gateway", &[r#""10.0.0.254""#, r#""fd00::2""#]),
    ("queues", &["1", "256"]),
    ("no_offload", FLAGS),
    ("path", PATHS),
    ("peer", PATHS),
    ("mode", &[r#""660""#, r#""0600""#, r#""888""#, r#""vepa""#]),
    ("lower", &[r#""veth0""#, r#""eth0""#]),
    ("server", FLAGS),
    ("client", FLAGS),
    ("listen", &[r#""127.0.0.1:5000""#, r#""[::]:0""#]),
    ("connect", &[r#""127.0.0.1:5000""#, r#""localhost:1""#]),
    ("access", VIDS),
    ("trunk", LISTS),
    ("native", VIDS),
    ("vlan", &[r#""default""#]),
    ("learning", FLAGS),
    ("flood", FLAGS),
    ("isolated", FLAGS),
    ("hairpin", FLAGS),
];
const STATION: &[Field] = &[("mac", MACS), ("port", PORTS), ("vlan", VIDS)];
const NEIGHBOUR: &[Field] = &[
    ("address", &[r#""10.0.0.1""#, r#""fd00::1""#, r#""fe80::2""#]),
    ("mac", MACS),
    ("bridge", BRIDGES),
    ("vlan", VIDS),
    ("router", FLAGS),
];

const ATTACH: &[Field] = &[
    ("bridge", &[r#""br0""#, r#""br1""#, r#""all""#]),
    ("user", &[r#""root""#, "0", r#""54321""#]),
    ("group", &[r#""kvm""#, "36", "4294967295"]),
];

/// Values that hardly any field takes.
const NOISE: &[&str] = &[
    "-1",
    "0",
    "4095",
    "65536",
    "1e400",
    "9223372036854775807",
    "18446744073709551616",
    "1.5",
    "null",
    "inf",
    r#""""#,
    r#""\n""#,
    r#""\r\u0000\u001b""#,
    r#""\ud800""#,
    r#""a name that is far too long for the kernel, and for a table, and for anything else""#,
    r#""10-5""#,
    r#""..""#,
    r#""..""#,
    r#""..""#,
    r#""..""#,
    r#""-x""#,
    r#""%d""#,
    r#""01:00:5e:00:00:01""#,
    r#""::/0""#,
    "[]",
    "[[], {}]",
    "{}",
    "[\"\"]",
];

impl Kind {
    fn fields(self) -> &'static [Field] {
        match self {
            Kind::Daemon => DAEMON,
            Kind::Bridge => BRIDGE,
            Kind::Port => PORT,
            Kind::Station => STATION,
            Kind::Neighbour => NEIGHBOUR,
            Kind::Attach => ATTACH,
        }
    }

    /// How many of its fields come first and have to be there.
    fn necessary(self) -> usize {
        match self {
            Kind::Daemon => 0,
            Kind::Bridge => 1,
            Kind::Port | Kind::Neighbour => 3,
            Kind::Station | Kind::Attach => 2,
        }
    }

    /// An object with its necessary fields (unless it is a `change`) and `picks`; `variant` tells which of its kind.
    pub(crate) fn object(
        self,
        variant: u8,
        picks: &Fields,
        change: bool,
    ) -> Vec<(&'static str, &'static str)> {
        let own = self.fields();
        let variant = usize::from(variant);
        let necessary = own.iter().take(if change { 0 } else { self.necessary() });
        let mut object: Vec<_> = necessary
            .zip([variant, variant / 4, variant / 16])
            .map(|((key, values), at)| (*key, values[at % values.len()]))
            .collect();
        // Long lists of fields hardly ever fit together.
        let few = [0, 1, 3, picks.len()][variant >> 6];
        for &(key, value) in picks.iter().take(few) {
            // Now and then another kind's field.
            let fields = if key < 0xf8 { own } else { KINDS[usize::from(key) % KINDS.len()].fields() };
            let skip = if change { self.necessary() % own.len() } else { 0 };
            let (key, good) = fields[(skip + usize::from(key)) % fields.len()];
            let values = if value < 0xf0 { good } else { NOISE };
            let value = values[usize::from(value) % values.len()];
            match object.iter_mut().find(|(known, _)| *known == key) {
                Some(place) => place.1 = value,
                None => object.push((key, value)),
            }
        }
        object
    }
}

/// `text` with some bytes overwritten, if this is to be.
pub(crate) fn spoil(text: String, (whether, patches): &Spoil) -> String {
    if whether & 7 != 0 || text.is_empty() {
        return text;
    }
    let mut bytes = text.into_bytes();
    let len = bytes.len();
    for (at, value) in patches {
        bytes[usize::from(*at) % len] = *value;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
