//! Where guests have the registers of their PCI devices.
//!
//! Loading device state, QEMU makes its maps of the address space anew for each register bank that comes to its place: a
//! third of that time. A QEMU that was started ahead is given the places beforehand that a guest with the same devices has
//! them at, by writes to its configuration space as firmware makes them. What is loaded has the last word on each.

use super::{RunningVm, VmError};
use serde_json::{Value, json};

const DURING: &str = "laying out a machine that was started ahead";
/// Ports of a PC's configuration space.
const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
const COMMAND: u8 = 0x4;
const FIRST_BAR: u8 = 0x10;
/// Ports, memory and being a bus's master are on.
const COMMAND_ON: u32 = 0x7;
/// Memory of devices is in the last two of the first four GiB; what is elsewhere is not laid out.
const MEMORY: std::ops::Range<u64> = 0x8000_0000..0x1_0000_0000;
const PORTS: std::ops::Range<u64> = 0x100..0x1_0000;

/// Where a guest has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout(Vec<Device>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Device {
    slot: u8,
    function: u8,
    /// Base address register and what is in it.
    bars: Vec<(u8, u32)>,
}

impl Layout {
    /// From QEMU's answer to `query-pci`. Of what makes no sense nothing is taken.
    fn parse(buses: &Value) -> Self {
        let devices = buses[0]["devices"].as_array().into_iter().flatten();
        Self(devices.filter_map(Device::parse).collect())
    }
}

impl Device {
    fn parse(device: &Value) -> Option<Self> {
        let number = |name: &str, end: u8| u8::try_from(device[name].as_u64()?).ok().filter(|n| *n < end);
        let bars = device["regions"].as_array().into_iter().flatten().filter_map(bar);
        let parsed = Self {
            slot: number("slot", 32)?,
            function: number("function", 8)?,
            bars: bars.take(6).collect(),
        };
        (!parsed.bars.is_empty()).then_some(parsed)
    }
}

fn bar(region: &Value) -> Option<(u8, u32)> {
    let number = u8::try_from(region["bar"].as_u64()?)
        .ok()
        .filter(|bar| *bar < 6)?;
    let places = if region["type"] == "io" { PORTS } else { MEMORY };
    let address = region["address"]
        .as_u64()
        .filter(|address| places.contains(address))?;
    Some((number, address as u32))
}

impl RunningVm {
    /// Where its guest has the registers of its devices.
    pub fn layout(&self) -> Result<Layout, VmError> {
        Ok(Layout::parse(&self.command(DURING, "query-pci", Value::Null)?))
    }

    /// Lays out a machine that waits for its device state.
    pub fn lay_out(&self, layout: &Layout) -> Result<(), VmError> {
        for device in &layout.0 {
            for (bar, address) in &device.bars {
                self.configure(device, FIRST_BAR + 4 * bar, *address)?;
            }
            self.configure(device, COMMAND, COMMAND_ON)?;
        }
        Ok(())
    }

    fn configure(&self, device: &Device, register: u8, value: u32) -> Result<(), VmError> {
        let (slot, function) = (u32::from(device.slot), u32::from(device.function));
        let address = 1 << 31 | slot << 11 | function << 8 | u32::from(register);
        for (port, value) in [(CONFIG_ADDRESS, address), (CONFIG_DATA, value)] {
            let line = format!("o/w {port} {value}");
            self.command(DURING, "human-monitor-command", json!({ "command-line": line }))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_left_out() {
        let region =
            |bar: i64, kind: &str, address: i64| json!({ "bar": bar, "type": kind, "address": address });
        let buses = json!([{ "devices": [
            { "slot": 0, "function": 0, "regions": [] },
            { "slot": 2, "function": 0, "regions": [region(0, "io", 0xc080), region(1, "memory", 0xfebf_a000), region(4, "memory", -1)] },
            { "slot": 3, "function": 0, "regions": [region(6, "io", 0xc000), region(0, "io", 0x1_0000), region(1, "memory", 0x1000)] },
            { "slot": 32, "function": 0, "regions": [region(0, "io", 0xc000)] },
            "nonsense",
        ] }]);
        let device = Device {
            slot: 2,
            function: 0,
            bars: vec![(0, 0xc080), (1, 0xfebf_a000)],
        };
        assert_eq!(Layout::parse(&buses), Layout(vec![device]));
        assert_eq!(Layout::parse(&json!("nonsense")), Layout::default());
    }
}
