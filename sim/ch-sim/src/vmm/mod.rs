//! The executor: one configuration, at most one VM, one call at a time (cloud-hypervisor.md 1).

mod calls;
mod devices;
mod hotplug;
mod info;
mod kernel;
mod migration;
mod resize;
mod restore;
mod snapshot;
mod tree;
mod vm;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use crate::api::{Answer, Call};
use crate::config::VmConfig;
use crate::context::Context;
use crate::error::{Chain, Outcome};
use crate::faults::Action;
use crate::guest::GuestEvent;
use crate::serial::Ports;
use vm::Vm;

/// What wakes the executor.
pub enum Message {
    /// A call of the API, with the way back for its answer.
    Call { call: Call, reply: Sender<Answer> },
    /// A guest did something; `generation` tells guests apart.
    Guest { generation: u64, event: GuestEvent },
    /// SIGTERM or SIGINT.
    Terminate,
}

/// State of a VM object. "Shutdown" is never seen: such a VM is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmState {
    Created,
    Running,
    Paused,
}

/// How the executor ended.
pub enum End {
    /// Orderly: exit 0, whatever the reason.
    Orderly,
    /// A guest's reset could not be carried out: exit 1.
    FailedReboot(Chain),
}

/// The virtual machine monitor.
pub struct Vmm {
    context: Arc<Context>,
    config: Option<VmConfig>,
    vm: Option<Vm>,
    /// Serial and console files, made before the VM and given up with it.
    ports: Option<Ports>,
    no_shutdown: bool,
    messages: Sender<Message>,
    generation: u64,
}

impl Vmm {
    /// A monitor without a VM. Guests report to `messages`, which must lead to the receiver of [`Vmm::run`].
    pub fn new(context: Arc<Context>, no_shutdown: bool, messages: Sender<Message>) -> Self {
        Self { context, config: None, vm: None, ports: None, no_shutdown, messages, generation: 0 }
    }

    /// Works until an end is ordered; every end but a failed reboot is orderly.
    pub fn run(&mut self, inbox: &Receiver<Message>) -> End {
        while let Ok(message) = inbox.recv() {
            let end = match message {
                Message::Call { call, reply } => self.serve(call, &reply),
                Message::Guest { generation, event } if generation == self.generation => self.on_guest_event(event),
                Message::Guest { .. } => None,
                Message::Terminate => {
                    self.context.log.info("VM exit event");
                    Some(self.shut_down())
                }
            };
            if let Some(end) = end {
                return end;
            }
        }
        End::Orderly
    }

    /// Carries a call out between its two fault points.
    fn serve(&mut self, call: Call, reply: &Sender<Answer>) -> Option<End> {
        let name = call.name();
        self.context.log.info(&format!("API request event: {name}"));
        let ends = matches!(call, Call::VmmShutdown);
        let before = self.fault(name);
        let answer = match before {
            Some(chain) => Err(chain),
            None => self.call(call),
        };
        let answer = match self.fault(&format!("{name}:done")) {
            Some(chain) => Err(chain),
            None => answer,
        };
        if let Err(chain) = &answer {
            self.context.log.info(&format!("API error: {}", chain.line()));
        }
        let ends = ends && answer.is_ok();
        // The client may have gone; the operation counts all the same.
        let _ = reply.send(answer);
        ends.then_some(End::Orderly)
    }

    /// A failure ordered at this point.
    fn fault(&self, point: &str) -> Option<Chain> {
        match self.context.faults.strike(point)? {
            Action::Error(text) => Some(Chain::new(text)),
            Action::Enospc => Some(Chain::new("No space left on device (os error 28)")),
            _ => None,
        }
    }

    fn on_guest_event(&mut self, event: GuestEvent) -> Option<End> {
        match event {
            GuestEvent::DriversReady => {
                self.report_activated();
                None
            }
            GuestEvent::Panic => {
                self.report_panic();
                None
            }
            GuestEvent::PowerOff if self.no_shutdown => {
                self.context.log.info("VM guest exit event");
                self.shutdown().err().map(End::FailedReboot)
            }
            GuestEvent::PowerOff => {
                self.context.log.info("VM guest exit event");
                Some(self.shut_down())
            }
            GuestEvent::VcpuError => {
                let text = "VCPU generated error: VcpuRun(RunVcpu(VM exit reason: InternalError))";
                self.context.log.error(text);
                Some(self.shut_down())
            }
            GuestEvent::Reset => {
                self.context.log.info("VM reset event");
                self.reboot().err().map(End::FailedReboot)
            }
        }
    }

    /// Ends everything in order; an error on the way changes nothing about the end.
    fn shut_down(&mut self) -> End {
        if let Err(chain) = self.vmm_shutdown() {
            self.context.log.error(&chain.line());
        }
        End::Orderly
    }

    fn report_activated(&self) {
        for id in self.vm.iter().flat_map(Vm::device_ids) {
            let properties = std::collections::BTreeMap::from([("id", id)]);
            self.context.events.emit_with("virtio-device", "activated", &properties);
        }
    }

    fn report_panic(&self) {
        if self.config.as_ref().is_some_and(|config| config.pvpanic) {
            let properties = std::collections::BTreeMap::from([("event", "panic".to_owned())]);
            self.context.events.emit_with("guest", "panic", &properties);
        }
    }

    /// The configuration, or "VM is not created".
    fn config_mut(&mut self) -> Outcome<&mut VmConfig> {
        self.config.as_mut().ok_or_else(Chain::not_created)
    }

    /// The VM, or "VM is not running".
    fn vm_mut(&mut self) -> Outcome<&mut Vm> {
        self.vm.as_mut().ok_or_else(Chain::not_running)
    }
}
