//! The small values of the interface: how an address, a VLAN or a list of them is written.
//!
//! The data plane's own types (`vswitch::addr`) know nothing of JSON or command lines, so each gets a wrapper
//! here that reads the same text wherever it comes from: `FromStr` serves the command line, the serde
//! implementations serve JSON and TOML, and the schema describes both. Where a number is the natural form in
//! JSON (a VLAN id), numbers are accepted as well.

use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::str::FromStr;

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::ser::{SerializeSeq, Serializer};
use serde::{Deserialize, Serialize};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};
use vswitch::addr::{MacAddr, VlanId, VlanSet};

/// A MAC address, written `02:00:00:00:00:01` (`-` is accepted as separator too).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ToSchema)]
#[schema(value_type = String, examples("02:00:00:00:00:01"))]
pub struct Mac(pub MacAddr);

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Mac).map_err(|error: vswitch::addr::ParseError| error.to_string())
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// An interface address with its prefix length, written `10.0.0.1/24` or `fd00::1/64`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Cidr {
    /// The interface's own address.
    pub address: IpAddr,
    /// Length of the network's prefix in bits, 0 to 32 or 128.
    pub prefix_len: u8,
}

impl PartialSchema for Cidr {
    fn schema() -> RefOr<Schema> {
        let text = ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("An interface address with its prefix length"))
            .examples(["10.0.0.1/24"]);
        text.into()
    }
}

impl ToSchema for Cidr {}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("'{text}' is not an address with a prefix length, such as 10.0.0.1/24 or fd00::1/64");
        let (address, length) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        if length.is_empty() || !length.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong());
        }
        let prefix_len: u8 = length.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        if prefix_len > most {
            return Err(format!("'{text}': the prefix length of this address is {most} at most"));
        }
        Ok(Cidr { address, prefix_len })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

/// Serde for a value whose one written form is its text.
macro_rules! as_text {
    ($type:ty, $expecting:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
    };
}

as_text!(Mac, "a MAC address such as \"02:00:00:00:00:01\"");
as_text!(Cidr, "an address with prefix length such as \"10.0.0.1/24\"");

/// A number in JSON and TOML, and its text in query strings.
macro_rules! as_number {
    ($type:ident, $expecting:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_u16((*self).into())
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Number;
                impl Visitor<'_> for Number {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }
                    fn visit_u64<E: de::Error>(self, number: u64) -> Result<$type, E> {
                        $type::try_from(number).map_err(E::custom)
                    }
                    fn visit_i64<E: de::Error>(self, number: i64) -> Result<$type, E> {
                        u64::try_from(number)
                            .map_err(|_| E::custom(format!("{number} is not {}", $expecting)))
                            .and_then(|number| self.visit_u64(number))
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                // Any: query strings only have text, JSON and TOML have numbers.
                deserializer.deserialize_any(Number)
            }
        }
    };
}

/// A VLAN id, 1 to 4094.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ToSchema)]
#[schema(value_type = u16, minimum = 1, maximum = 4094, examples(10))]
pub struct Vid(pub VlanId);

impl FromStr for Vid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = text.bytes().all(|b| b.is_ascii_digit());
        let vid = if plain { text.parse().ok() } else { None };
        vid.map(Vid).ok_or_else(|| {
            format!("'{}' is not a VLAN id: expected a number from 1 to 4094", text.escape_debug())
        })
    }
}

impl TryFrom<u64> for Vid {
    type Error = String;

    fn try_from(number: u64) -> Result<Self, String> {
        u16::try_from(number)
            .ok()
            .and_then(VlanId::new)
            .map(Vid)
            .ok_or_else(|| format!("{number} is not a VLAN id: expected a number from 1 to 4094"))
    }
}

impl fmt::Display for Vid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl From<Vid> for u16 {
    fn from(vid: Vid) -> u16 {
        vid.0.get()
    }
}

as_number!(Vid, "a VLAN id from 1 to 4094");

/// The VLAN of a station as 'fdb show' prints it: a VLAN id, or 0 on a bridge that does not filter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ToSchema)]
#[schema(value_type = u16, minimum = 0, maximum = 4094, examples(0))]
pub struct StationVlan(pub u16);

impl FromStr for StationVlan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
        number.and_then(|number: u64| StationVlan::try_from(number).ok()).ok_or_else(|| {
            format!(
                "'{}' is not a station's VLAN: expected a number from 1 to 4094, or 0 where VLANs are not filtered",
                text.escape_debug()
            )
        })
    }
}

impl TryFrom<u64> for StationVlan {
    type Error = String;

    fn try_from(number: u64) -> Result<Self, String> {
        let vlan = u16::try_from(number).ok().filter(|&number| number == 0 || VlanId::new(number).is_some());
        vlan.map(StationVlan).ok_or_else(|| {
            format!("{number} is not a station's VLAN: expected 1 to 4094, or 0 where VLANs are not filtered")
        })
    }
}

impl fmt::Display for StationVlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl From<StationVlan> for u16 {
    fn from(vlan: StationVlan) -> u16 {
        vlan.0
    }
}

as_number!(StationVlan, "a VLAN id from 1 to 4094, or 0");

/// A list of VLAN ids: `10,20-30` as text; in JSON and TOML also an array of numbers and such texts.
///
/// Written out it is always an array of numbers, or as text with its ranges folded.
#[derive(Clone, PartialEq, Eq, Debug, Default, ToSchema)]
#[schema(value_type = Vec<u16>, examples(json!([10, 20, 21])))]
pub struct VlanList(VlanSet);

impl VlanList {
    /// The ids in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = VlanId> + '_ {
        self.0.iter()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As the data plane wants it.
    #[must_use]
    pub fn to_set(&self) -> VlanSet {
        self.0.clone()
    }

    fn add_text(&mut self, text: &str) -> Result<(), String> {
        for part in text.split(',').map(str::trim) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (Vid, Vid) = (first.trim().parse()?, last.trim().parse()?);
            if first > last {
                return Err(format!("VLAN range '{part}' ends before it begins"));
            }
            (first.0.get()..=last.0.get()).filter_map(VlanId::new).for_each(|vid| self.0.insert(vid));
        }
        Ok(())
    }
}

impl From<&VlanSet> for VlanList {
    fn from(set: &VlanSet) -> Self {
        VlanList(set.clone())
    }
}

impl FromStr for VlanList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut list = VlanList::default();
        list.add_text(text)?;
        Ok(list)
    }
}

impl fmt::Display for VlanList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ids = self.iter().map(VlanId::get).peekable();
        let mut separator = "";
        while let Some(first) = ids.next() {
            let mut last = first;
            while let Some(next) = ids.next_if_eq(&(last + 1)) {
                last = next;
            }
            match last - first {
                0 => write!(f, "{separator}{first}")?,
                1 => write!(f, "{separator}{first},{last}")?,
                _ => write!(f, "{separator}{first}-{last}")?,
            }
            separator = ",";
        }
        Ok(())
    }
}

impl Serialize for VlanList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut array = serializer.serialize_seq(None)?;
        for vid in self.iter() {
            array.serialize_element(&vid.get())?;
        }
        array.end()
    }
}

impl<'de> Deserialize<'de> for VlanList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = VlanList;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("VLAN ids: \"10,20-30\", or an array of numbers and such texts")
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<VlanList, E> {
                let vid = Vid::try_from(number).map_err(E::custom)?;
                Ok(VlanList([vid.0].into_iter().collect()))
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<VlanList, E> {
                self.visit_str(&number.to_string())
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<VlanList, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<VlanList, A::Error> {
                let mut list = VlanList::default();
                while let Some(part) = array.next_element::<VlanList>()? {
                    part.iter().for_each(|vid| list.0.insert(vid));
                }
                Ok(list)
            }
        }
        deserializer.deserialize_any(List)
    }
}

/// A list of addresses: an array, or a single one as text.
pub(crate) fn one_or_many<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + FromStr<Err: fmt::Display>,
{
    struct Many<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de> + FromStr<Err: fmt::Display>> Visitor<'de> for Many<T> {
        type Value = Vec<T>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an address, or an array of them")
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<T>, E> {
            text.parse().map(|one| vec![one]).map_err(E::custom)
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Vec<T>, A::Error> {
            let mut all = Vec::new();
            while let Some(one) = array.next_element()? {
                all.push(one);
            }
            Ok(all)
        }
    }
    deserializer.deserialize_any(Many(PhantomData))
}

/// The same for what may be absent.
pub(crate) fn some_or_many<'de, D, T>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + FromStr<Err: fmt::Display>,
{
    one_or_many(deserializer).map(Some)
}

/// Reads `on` or `off` on a command line; JSON and TOML have booleans for it.
pub(crate) fn on_off() -> clap::builder::ValueParser {
    use clap::builder::{PossibleValuesParser, TypedValueParser, ValueParser};
    ValueParser::new(PossibleValuesParser::new(["on", "off"]).map(|text| text == "on"))
}

/// `on` or `off`.
#[must_use]
pub fn on_off_text(value: bool) -> &'static str {
    if value { "on" } else { "off" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vlan_lists_read_and_fold() {
        let list: VlanList = "10, 20-23,5,21,30,31".parse().unwrap();
        assert_eq!(list.to_string(), "5,10,20-23,30,31");
        assert_eq!(serde_json::to_string(&list).unwrap(), "[5,10,20,21,22,23,30,31]");
        for same in ["\"5,10,20-23,30-31\"", "[5,10,\"20-23\",30,31]"] {
            assert_eq!(serde_json::from_str::<VlanList>(same).unwrap(), list, "{same}");
        }
        assert_eq!(serde_json::from_str::<VlanList>("7").unwrap().to_string(), "7");
        assert_eq!("1-4094".parse::<VlanList>().unwrap().iter().count(), 4094);
    }

    #[test]
    fn vlan_lists_refuse_nonsense() {
        for bad in [
            "",
            ",",
            "0",
            "4095",
            "10-",
            "-10",
            "30-20",
            "1-2-3",
            "+5",
            "ten",
            "1,,2",
            "99999999999999999999",
        ] {
            assert!(bad.parse::<VlanList>().is_err(), "{bad}");
        }
        for bad in ["0", "-1", "4095", "1.5", "true", "{}", "[0]", "null", "[true]"] {
            assert!(serde_json::from_str::<VlanList>(bad).is_err(), "{bad}");
        }
        for bad in ["0", "-1", "4095", "65537", "1.5", "\"\"", "\"x\""] {
            assert!(serde_json::from_str::<Vid>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_read_and_print() {
        for good in ["10.0.0.1/24", "fd00::1/64", "0.0.0.0/0", "::1/128"] {
            assert_eq!(good.parse::<Cidr>().unwrap().to_string(), good);
        }
        for bad in [
            "10.0.0.1",
            "10.0.0.1/",
            "10.0.0.1/33",
            "fd00::1/129",
            "10.0.0/24",
            "10.0.0.1/+4",
            "10.0.0.1/-1",
            "/24",
        ] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
        let mac: Mac = "02-00-00-00-00-0A".parse().unwrap();
        assert_eq!(serde_json::to_string(&mac).unwrap(), "\"02:00:00:00:00:0a\"");
        assert!("02:00".parse::<Mac>().unwrap_err().contains("'02:00'"));
    }
}
