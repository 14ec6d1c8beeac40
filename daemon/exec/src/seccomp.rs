//! The default filter of system calls, as OCI runtimes want it.
//!
//! What may be called is what Docker and its relatives allow by default:
//! everything that is harmless inside namespaces, and more with certain
//! capabilities. Runtimes skip names that their kernel or library lacks.
//! Calls made through the 32-bit interfaces of an architecture are filtered by
//! the same rules.

use serde::Serialize;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// The flags of `clone(2)` that make namespaces: NEWNS, NEWCGROUP, NEWUTS,
/// NEWIPC, NEWUSER, NEWPID, NEWNET.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// A filter.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Filter {
    default_action: &'static str,
    default_errno_ret: u32,
    #[serde(skip_serializing_if = "<[&str]>::is_empty")]
    architectures: &'static [&'static str],
    syscalls: Vec<Rule>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    names: Vec<&'static str>,
    action: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    errno_ret: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<Argument>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u32,
    value: u64,
    op: &'static str,
}

/// The filter for a process with these capabilities in its bounding set.
/// `arch` is one of Rust's names of architectures.
pub(crate) fn filter(arch: &str, capabilities: &[String]) -> Filter {
    let has = |name: &str| capabilities.iter().any(|c| c == name);
    let mut rules = vec![allow(SAFE.iter().flat_map(|names| names.split_ascii_whitespace()))];
    // Everyone may trace their own processes since Linux 4.8 closed the way around filters.
    rules.push(allow(["process_vm_readv", "process_vm_writev", "ptrace"]));
    // Sockets of every family but AF_ALG (38) and AF_VSOCK (40).
    for (op, value) in [("SCMP_CMP_LT", 38), ("SCMP_CMP_EQ", 39), ("SCMP_CMP_GT", 40)] {
        rules.push(when("socket", Argument { index: 0, value, op }));
    }
    // Personalities: Linux, SVR4-like UNAME26, ADDR_NO_RANDOMIZE in no other mix, and asking.
    for value in [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff] {
        rules.push(when("personality", Argument { index: 0, value, op: "SCMP_CMP_EQ" }));
    }
    for (arches, names) in BY_ARCH {
        if arches.contains(&arch) {
            rules.push(allow(names.split_ascii_whitespace()));
        }
    }
    for (capability, names) in BY_CAPABILITY {
        if has(capability) {
            rules.push(allow(names.split_ascii_whitespace()));
        }
    }
    if !has("CAP_SYS_ADMIN") {
        // No namespaces. The flags of clone3 are out of a filter's sight, so it must not
        // exist: C libraries then fall back to clone.
        let index = u32::from(arch == "s390x");
        let op = "SCMP_CMP_MASKED_EQ";
        rules.push(when("clone", Argument { index, value: CLONE_NAMESPACES, op }));
        rules.push(Rule {
            names: vec!["clone3"],
            action: "SCMP_ACT_ERRNO",
            errno_ret: Some(ENOSYS),
            args: Vec::new(),
        });
    }
    Filter {
        default_action: "SCMP_ACT_ERRNO",
        default_errno_ret: EPERM,
        architectures: architectures(arch),
        syscalls: rules,
    }
}

fn allow(names: impl IntoIterator<Item = &'static str>) -> Rule {
    Rule { names: names.into_iter().collect(), action: "SCMP_ACT_ALLOW", errno_ret: None, args: Vec::new() }
}

fn when(name: &'static str, argument: Argument) -> Rule {
    Rule { args: vec![argument], ..allow([name]) }
}

fn architectures(arch: &str) -> &'static [&'static str] {
    match arch {
        "x86_64" => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "aarch64" => &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        "s390x" => &["SCMP_ARCH_S390X", "SCMP_ARCH_S390"],
        "riscv64" => &["SCMP_ARCH_RISCV64"],
        "loongarch64" => &["SCMP_ARCH_LOONGARCH64"],
        _ => &[],
    }
}

const BY_ARCH: &[(&[&str], &str)] = &[
    (&["powerpc64"], "sync_file_range2 swapcontext"),
    (
        &["arm", "aarch64"],
        "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
    ),
    (&["x86_64", "x86"], "modify_ldt"),
    (&["x86_64"], "arch_prctl"),
    (&["s390x"], "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr"),
    (&["riscv64"], "riscv_flush_icache"),
];

const BY_CAPABILITY: &[(&str, &str)] = &[
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr \
         lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl \
         quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module init_module finit_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    ("CAP_SYS_TIME", "settimeofday stime clock_settime clock_settime64"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// What everyone may call, by topic.
const SAFE: &[&str] = &[
    // memory
    "brk madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap \
     mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect \
     remap_file_pages",
    // time
    "adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime \
     clock_gettime64 clock_nanosleep clock_nanosleep_time64 futex_time64 futimesat getitimer gettimeofday \
     io_pgetevents_time64 mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 \
     nanosleep ppoll_time64 pselect6_time64 recvmmsg_time64 rt_sigtimedwait rt_sigtimedwait_time64 \
     sched_rr_get_interval_time64 semtimedop semtimedop_time64 setitimer time timer_create timer_delete \
     timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create \
     timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times utime utimensat \
     utimensat_time64 utimes",
    // ipc
    "ipc mq_getsetattr mq_notify mq_open mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop shmat \
     shmctl shmdt shmget",
    // sockets
    "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmsg \
     send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair",
    // ids
    "capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getpgid \
     getpgrp getpid getppid getresgid getresgid32 getresuid getresuid32 getsid gettid getuid getuid32 \
     setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setpgid setregid \
     setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setsid setuid setuid32",
    // sched
    "getcpu getpriority getrlimit getrusage ioprio_get ioprio_set prlimit64 sched_get_priority_max \
     sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler \
     sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield \
     setpriority setrlimit ugetrlimit",
    // process
    "execve execveat exit exit_group fork futex futex_requeue futex_wait futex_waitv futex_wake \
     get_robust_list get_thread_area kill landlock_add_rule landlock_create_ruleset \
     landlock_restrict_self pause pidfd_open pidfd_send_signal prctl process_mrelease restart_syscall \
     riscv_hwprobe rseq seccomp set_robust_list set_thread_area set_tid_address tgkill tkill uretprobe \
     vfork wait4 waitid waitpid",
    // signals
    "rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend \
     rt_tgsigqueueinfo sigaltstack signalfd signalfd4 sigprocmask sigreturn",
    // xattr
    "fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat \
     llistxattr lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat",
    // polling
    "_newselect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait \
     epoll_wait_old eventfd eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1 \
     inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit poll ppoll \
     pselect6 select",
    // dirs and names
    "access cachestat chdir chmod chown chown32 close close_range creat faccessat faccessat2 fchdir \
     fchmod fchmodat fchmodat2 fchown fchown32 fchownat fstat fstat64 fstatat64 fstatfs fstatfs64 getcwd \
     getdents getdents64 lchown lchown32 link linkat listmount lstat lstat64 mkdir mkdirat mknod mknodat \
     name_to_handle_at newfstatat open openat openat2 readlink readlinkat rename renameat renameat2 rmdir \
     stat stat64 statfs statfs64 statmount statx symlink symlinkat umask unlink unlinkat",
    // files and the rest
    "_llseek copy_file_range dup dup2 dup3 fadvise64 fadvise64_64 fallocate fcntl fcntl64 fdatasync flock \
     fsync ftruncate ftruncate64 getrandom ioctl lseek pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev \
     pwritev2 read readahead readv sendfile sendfile64 splice sync sync_file_range syncfs sysinfo tee \
     truncate truncate64 uname vmsplice write writev",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(filter: &Filter, name: &str) -> bool {
        filter
            .syscalls
            .iter()
            .any(|r| r.action == "SCMP_ACT_ALLOW" && r.args.is_empty() && r.names.contains(&name))
    }

    #[test]
    fn capabilities_open_calls() {
        let plain = filter("x86_64", &["CAP_CHOWN".into(), "CAP_SYS_CHROOT".into()]);
        assert!(allowed(&plain, "openat") && allowed(&plain, "chroot") && allowed(&plain, "arch_prctl"));
        for name in ["mount", "unshare", "bpf", "reboot", "clone3", "keyctl", "userfaultfd", "io_uring_setup"]
        {
            assert!(!allowed(&plain, name), "{name}");
        }
        let admin = filter("aarch64", &["CAP_SYS_ADMIN".into()]);
        assert!(allowed(&admin, "mount") && allowed(&admin, "clone3") && !allowed(&admin, "arch_prctl"));
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = SAFE.iter().flat_map(|n| n.split_ascii_whitespace()).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!((names.len(), all), (361, 361));
    }
}
