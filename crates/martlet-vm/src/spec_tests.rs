use super::*;
use crate::compat::Accel;

fn spec() -> MachineSpec {
    MachineSpec {
        name: "web,1".into(),
        hardware: Hardware {
            machine_type: "pc-q35-7.2".into(),
            cpu_model: "Westmere-v1".into(),
            accel: Accel::Tcg,
            qemu_version: "7.2.22".into(),
        },
        cpus: 2,
        memory: Memory {
            path: "/mnt/mem/a,b".into(),
            size_bytes: 512 << 20,
            free_page_reporting: true,
        },
        disks: vec![Disk {
            path: Some("/mnt/disk/\"x\",y".into()),
            read_only: false,
        }],
        boot: Boot::Kernel {
            kernel: "/k/vmlinuz".into(),
            initrd: Some("/k/initrd".into()),
            cmdline: "console=ttyS0 a=1,2".into(),
        },
        net: Some(Net {
            family: None,
            address: Ipv4Addr::new(10, 77, 3, 4),
            mac: "52:54:00:12:34:56".into(),
            link: user(8080, false),
        }),
        generation_id: "324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87".into(),
        run_dir: "/run/m".into(),
        incoming: false,
    }
}

/// The whole command line, written out: descriptors in people's stores depend on it.
/// User-mode networking with one forwarded port.
fn user(host_port: u16, outbound: bool) -> Link {
    let forward = Forward {
        host_port,
        guest_port: 80,
    };
    Link::User {
        forwards: vec![forward],
        outbound,
    }
}

#[test]
fn a_booting_machine() {
    let expected = "\
-name web,,1,process=martlet:web,,1
-no-user-config
-nodefaults
-action reboot=shutdown,panic=exit-failure
-display none
-vga none
-msg timestamp=on
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-machine pc-q35-7.2,memory-backend=mem,suppress-vmdesc=on,mem-merge=off,dump-guest-core=off
-accel tcg,thread=multi,tb-size=64
-cpu Westmere-v1
-smp 2,sockets=1,cores=2,threads=1
-m 512M
-object memory-backend-file,id=mem,size=536870912,mem-path=/mnt/mem/a,,b,share=off
-kernel /k/vmlinuz
-initrd /k/initrd
-append console=ttyS0 a=1,2
-chardev socket,id=qmp,path=/run/m/qmp.sock,server=on,wait=off
-mon chardev=qmp,mode=control
-chardev socket,id=console,path=/run/m/console.sock,server=on,wait=off,logfile=/run/m/console.log,logappend=on
-serial chardev:console
-chardev socket,id=agent,path=/run/m/agent.sock,server=on,wait=off
-device virtio-serial-pci,id=channels,max_ports=4,addr=0x2
-device virtserialport,bus=channels.0,nr=1,chardev=agent,name=martlet.agent
-netdev user,id=net,ipv6=off,net=10.77.0.0/16,host=10.77.0.2,dns=10.77.0.3,dhcpstart=10.77.3.4,restrict=on,hostfwd=tcp:127.0.0.1:8080-10.77.3.4:80
-device virtio-net-pci,id=nic,netdev=net,mac=52:54:00:12:34:56,romfile=,addr=0x3
-object rng-random,id=entropy,filename=/dev/urandom
-device virtio-rng-pci,rng=entropy,addr=0x4
-device virtio-balloon-pci,id=balloon,free-page-reporting=on,addr=0x5
-device pvpanic-pci,addr=0x6
-device vmgenid,guid=324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87
-blockdev {\"discard\":\"unmap\",\"driver\":\"raw\",\"file\":{\"discard\":\"unmap\",\"driver\":\"file\",\"filename\":\"/mnt/disk/\\\"x\\\",y\",\"locking\":\"off\"},\"node-name\":\"disk0\",\"read-only\":false}
-device virtio-blk-pci,id=vd0,drive=disk0,addr=0x8
-S";
    assert_eq!(lines(&spec()), expected.lines().collect::<Vec<_>>());
}

/// One option with its value on each line.
fn lines(spec: &MachineSpec) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for arg in spec.args() {
        match lines.last_mut() {
            Some(last) if !arg.starts_with('-') => *last += &format!(" {arg}"),
            _ => lines.push(arg),
        }
    }
    lines
}

#[test]
fn a_restored_machine_differs_only_in_how_it_begins() {
    let booting = spec();
    let restored = MachineSpec {
        incoming: true,
        ..spec()
    };
    let (booting, restored) = (lines(&booting), lines(&restored));
    let gone: Vec<_> = booting.iter().filter(|l| !restored.contains(l)).collect();
    let new: Vec<_> = restored.iter().filter(|l| !booting.contains(l)).collect();
    assert_eq!(
        gone,
        [
            "-kernel /k/vmlinuz",
            "-initrd /k/initrd",
            "-append console=ttyS0 a=1,2"
        ]
    );
    assert_eq!(
        new,
        [
            "-incoming defer",
            "-global migration.send-configuration=off",
            "-global migration.announce-rounds=1"
        ]
    );
}

#[test]
fn choices_are_on_the_command_line() {
    let mut spec = spec();
    spec.hardware.accel = Accel::Kvm;
    spec.memory.free_page_reporting = false;
    spec.boot = Boot::Firmware;
    spec.net.as_mut().unwrap().link = user(8080, true);
    let text = lines(&spec).join("\n");
    assert!(text.contains("-accel kvm\n"));
    assert!(text.contains("free-page-reporting=off"));
    assert!(text.contains("restrict=off"));
    assert!(!text.contains("-kernel"));
    spec.net.as_mut().unwrap().link = Link::Tap;
    assert!(lines(&spec).contains(&"-netdev hubport,id=net,hubid=0".into()));
    spec.net = None;
    assert!(!lines(&spec).join("\n").contains("netdev"));
}

#[test]
fn impossible_machines_are_refused_with_the_reason() {
    assert!(spec().check().is_ok());
    let refused = |change: &dyn Fn(&mut MachineSpec), word: &str| {
        let mut spec = spec();
        change(&mut spec);
        let why = spec.check().expect_err(word).to_string();
        assert!(why.contains(word), "{why}");
    };
    refused(&|s| s.cpus = 0, "0 CPUs");
    refused(&|s| s.cpus = 1000, "1000 CPUs");
    refused(&|s| s.memory.size_bytes = 0, "memory");
    refused(&|s| s.memory.size_bytes = (64 << 20) + 1, "memory");
    refused(&|s| s.disks = vec![s.disks[0].clone(); 9], "disks");
    refused(
        &|s| s.net.as_mut().unwrap().address = Ipv4Addr::new(10, 77, 0, 2),
        "10.77.0.2",
    );
    refused(
        &|s| s.net.as_mut().unwrap().address = Ipv4Addr::new(192, 168, 0, 9),
        "192.168.0.9",
    );
    refused(
        &|s| s.net.as_mut().unwrap().mac = "52:54:00:12:34:5,".into(),
        "MAC",
    );
    refused(&|s| s.net.as_mut().unwrap().link = user(0, false), "port");
    refused(
        &|s| s.run_dir = format!("/run/{}", "x".repeat(100)).into(),
        "too long",
    );
}
