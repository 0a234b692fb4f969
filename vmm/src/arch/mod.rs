//! What is particular to x86-64: the address map, tables, registers and the way a kernel is started.

pub mod acpi;
pub mod cmdline;
pub mod cpu_compat;
pub mod cpu_config;
pub mod cpu_template;
pub mod cpuid;
mod elf;
pub mod kernel;
pub mod kvm_error;
pub mod layout;
pub mod mptable;
pub mod msr;
pub mod protocol;
pub mod registers;
pub mod tsc;
pub mod vcpu_state;
pub mod vm_state;
