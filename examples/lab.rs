//! scratch
use vswitch::spec::*;
use vswitch::switch::*;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let poll = match args[1].as_str() { "busy" => PollMode::Busy, "wait" => PollMode::Wait, _ => PollMode::Adaptive };
    let sw = Switch::start(&Options { workers: args[2].parse().ok(), cpus: vec![], poll }).unwrap();
    sw.add_bridge(BridgeSpec::new("br0")).unwrap();
    for (i, spec) in args[3..].iter().enumerate() {
        let p: Vec<&str> = spec.split(',').collect();
        let kind = match p[0] {
            "tap" | "plain" => { let mut t = TapSpec::new("tap0"); t.netns = Some(Netns(p[1].into()));
                t.offload = p[0] == "tap";
                t.addresses = vec![(p[2].parse().unwrap(), 24)]; PortKind::Tap(t) }
            _ => PortKind::Packet(PacketSpec { ifname: p[1].into(), netns: None }),
        };
        sw.add_port(PortSpec { name: format!("p{i}"), bridge: "br0".into(), kind, settings: PortSettings::default() }, Missing::Refuse).unwrap();
    }
    let mut line = String::new();
    loop { line.clear(); if std::io::stdin().read_line(&mut line).unwrap() == 0 { break; }
      if line.trim() == "q" { break; }
      for p in sw.ports() { println!("{} {:?} {:?}", p.spec.name, p.state, p.counters); } println!("{:?}", sw.fdb(&FdbFilter::default())); println!("{:?}", sw.status()); }
    sw.stop();
}
