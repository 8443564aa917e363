//! Units of made-up processes.

use super::*;
use crate::process::Supervisor;
use crate::procfs::Interpreter;
use std::collections::BTreeSet;
use unstale_protocol::host::Numbering;

/// A process in one line: pid, parent, stack start (0: not known), command words separated by `|`.
pub(crate) fn known(pid: u32, parent: u32, stack: u64, command: &str) -> Known {
    let facts = Facts {
        identity: ProcessIdentity { pid: Pid(pid), start_ticks: u64::from(pid) * 10, pid_namespace: 1 },
        parent: Pid(parent),
        comm: "python".to_owned(),
        uid: 1000,
        started_at_ms: 0,
        command: command.split('|').map(str::to_owned).collect(),
        has_terminal: false,
        cgroup: "/".to_owned(),
        mount_namespace: 1,
        inner_pid: Pid(pid),
        caught_signals: 0,
        exe: None,
        cwd: Some("/srv".to_owned()),
        other_root: false,
        environment: Vec::new(),
        blank_environment: false,
        stack_start: stack,
        python: Interpreter::Yes,
        supervisord_config: None,
        denied: None,
    };
    Known::new(facts, "shop".to_owned())
}

struct Host {
    python: BTreeMap<Pid, Known>,
    others: BTreeMap<Pid, Ancestor>,
    programs: BTreeMap<ProcessIdentity, String>,
    numbers: Numbers,
}

impl Host {
    fn new(python: Vec<Known>) -> Self {
        let python = python.into_iter().map(|known| (known.facts.identity.pid, known)).collect();
        let init = Ancestor { parent: Pid(0), comm: "systemd".to_owned() };
        Self {
            python,
            others: BTreeMap::from([(Pid(1), init)]),
            programs: BTreeMap::new(),
            numbers: Numbers::default(),
        }
    }

    fn other(mut self, pid: u32, parent: u32, comm: &str) -> Self {
        self.others.insert(Pid(pid), Ancestor { parent: Pid(parent), comm: comm.to_owned() });
        self
    }

    fn look(&mut self) -> Assembled {
        let others = |pid: Pid| self.others.get(&pid).cloned();
        let family = Family { python: &self.python, others: &others, programs: &self.programs };
        family.assemble(&mut self.numbers)
    }

    /// Each unit as `id: pids`.
    fn units(&mut self) -> Vec<String> {
        let pids = |unit: &Unit| {
            unit.processes.iter().map(|process| process.identity.pid.to_string()).collect::<Vec<_>>().join(" ")
        };
        let mut units: Vec<String> =
            self.look().units.iter().map(|unit| format!("{}: {}", unit.id, pids(unit))).collect();
        units.sort();
        units
    }

    fn slots(&mut self) -> Vec<String> {
        self.look().units.iter().map(|unit| unit.slot.to_string()).collect()
    }
}

const CELERY: &str = "python|/v/bin/celery|-A|shop|worker";

#[test]
fn forks_of_a_main_form_one_unit_with_it() {
    let mut host = Host::new(vec![known(10, 1, 5, CELERY), known(11, 10, 5, CELERY), known(12, 10, 0, CELERY)]);
    assert_eq!(host.units(), ["celery:10: 10 11 12"]);
    let mut host = Host::new(vec![
        known(10, 1, 5, "[celeryd: w1@box:MainProcess] -active- (-A shop worker)"),
        known(12, 10, 5, "[celery beat]"),
        known(11, 10, 5, "[celeryd: w1@box:ForkPoolWorker-1]"),
        known(13, 10, 0, "[celery beat]"),
    ]);
    assert_eq!(host.units(), ["celery:10: 10 11 12 13"]);
}

#[test]
fn children_of_multiprocessing_belong_to_their_parents_unit() {
    let spawned = "python|-c|from multiprocessing.spawn import spawn_main; spawn_main()|--multiprocessing-fork";
    let mut host = Host::new(vec![
        known(10, 1, 5, "python|/v/bin/uvicorn|web:app|--workers|2"),
        known(11, 10, 6, "python|-c|from multiprocessing.resource_tracker import main;main(6)"),
        known(12, 10, 7, spawned),
        known(13, 12, 7, spawned),
    ]);
    assert_eq!(host.units(), ["uvicorn:10: 10 11 12 13"]);
}

#[test]
fn a_program_started_by_a_worker_is_a_unit_of_its_own() {
    let mut host = Host::new(vec![known(10, 1, 5, CELERY), known(11, 10, 6, "python|report.py")]);
    assert_eq!(host.units(), ["celery:10: 10", "python:11: 11"]);
    let report = host.look().units.into_iter().find(|unit| unit.kind == Kind::Python).expect("unit");
    assert_eq!(report.supervisor, Supervisor::Other { name: "celery:10".to_owned() });
}

#[test]
fn a_plain_launcher_is_not_the_main() {
    let mut host = Host::new(vec![known(10, 1, 5, "python|run.py"), known(11, 10, 5, "[celeryd: w1@box:MainProcess]")]);
    assert_eq!(host.units(), ["celery:11: 11", "python:10: 10"]);
}

#[test]
fn plain_forks_and_reloaders_are_one_unit() {
    let mut host = Host::new(vec![
        known(10, 1, 5, "python|app.py"),
        known(11, 10, 5, "app: child"),
        known(12, 10, 6, "python|app.py"),
        known(13, 10, 6, "python|other.py"),
    ]);
    assert_eq!(host.units(), ["python:10: 10 11 12", "python:13: 13"]);
}

#[test]
fn a_supervisor_is_never_part_of_a_unit() {
    let mut supervisord = known(5, 1, 4, "python|/v/bin/supervisord|-c|conf/s.conf");
    supervisord.facts.cgroup = "/system.slice/supervisor.service".to_owned();
    let mut main = known(10, 5, 5, CELERY);
    main.facts.cgroup = "/system.slice/supervisor.service".to_owned();
    main.facts.environment = vec![
        ("SUPERVISOR_GROUP_NAME".to_owned(), "shop".to_owned()),
        ("SUPERVISOR_PROCESS_NAME".to_owned(), "worker_00".to_owned()),
    ];
    let mut host = Host::new(vec![supervisord, main, known(11, 10, 5, CELERY)]);
    let looked = host.look();
    assert_eq!((looked.keepers, looked.unnamed.len(), looked.units.len()), (1, 0, 1));
    let unit = &looked.units[0];
    let config = "/srv/conf/s.conf".to_owned();
    assert_eq!(unit.supervisor, Supervisor::Supervisord { name: "shop:worker_00".to_owned(), pid: Pid(5), config });
    // The first digits of `printf /srv/conf/s.conf | sha256sum`.
    assert_eq!(unit.slot.as_str(), "celery/supervisord:c44fc3b0/shop:worker_00");
    assert_eq!(unit.service, "shop");
}

#[test]
fn a_program_that_hides_its_name_is_to_be_asked_for() {
    let mut host = Host::new(vec![
        known(5, 1, 4, "python|/v/bin/supervisord|-c|/s.conf"),
        known(10, 7, 5, "[celeryd: w1@box:MainProcess]"),
    ])
    .other(7, 5, "sh");
    let looked = host.look();
    assert_eq!(looked.unnamed.len(), 1);
    assert_eq!(looked.unnamed[0].started.pid, Pid(7));
    let started = ProcessIdentity { pid: Pid(7), start_ticks: 70, pid_namespace: 1 };
    host.programs.insert(started, "shop:w".to_owned());
    let looked = host.look();
    assert_eq!((looked.unnamed.len(), looked.units[0].service.as_str()), (0, "shop"));
}

#[test]
fn the_nearest_keeper_in_the_chain_of_parents_counts() {
    fn check(comm: &str, expected: &str) {
        let mut host = Host::new(vec![known(10, 7, 5, CELERY)]).other(7, 6, "sh").other(6, 1, comm);
        assert_eq!(host.look().units[0].supervisor, Supervisor::Other { name: expected.to_owned() });
    }
    check("runsv", "runit");
    check("s6-supervise", "s6");
    check("tini", "tini");
    let mut host = Host::new(vec![known(10, 7, 5, CELERY)]).other(7, 1, "bash");
    assert_eq!(host.look().units[0].supervisor, Supervisor::None);
}

#[test]
fn a_service_of_systemd_names_the_slot() {
    fn check(cgroup: &str, slot: &str, service: &str) {
        let mut main = known(10, 1, 5, CELERY);
        main.facts.cgroup = cgroup.to_owned();
        let looked = Host::new(vec![main]).look();
        assert_eq!((looked.units[0].slot.as_str(), looked.units[0].service.as_str()), (slot, service), "{cgroup}");
    }
    check("/system.slice/shop@1.service", "celery/systemd/shop@1.service", "shop.service");
    check("/system.slice/shop.service/sub", "celery/systemd/shop.service", "shop.service");
    check(
        "/user.slice/user-7.slice/user@7.service/app.slice/a.service",
        "celery/systemd/user@7/a.service",
        "a.service",
    );
    let long = format!("/system.slice/{}.service", "x".repeat(250));
    let mut main = known(10, 1, 5, CELERY);
    main.facts.cgroup = long;
    assert!(Host::new(vec![main]).slots()[0].len() < 256);
}

#[test]
fn a_container_is_said_to_be_one() {
    let id = "0123456789abcdef".repeat(4);
    for cgroup in [
        format!("/docker/{id}"),
        format!("/system.slice/docker-{id}.scope"),
        format!("/kubepods.slice/kubepods-burstable.slice/cri-containerd-{id}.scope"),
        format!("/machine.slice/libpod-{id}.scope"),
    ] {
        let mut main = known(10, 1, 5, CELERY);
        main.facts.cgroup.clone_from(&cgroup);
        let looked = Host::new(vec![main]).look();
        assert_eq!(looked.units[0].supervisor, Supervisor::Other { name: "container".to_owned() }, "{cgroup}");
    }
}

#[test]
fn equal_unsupervised_units_are_numbered_and_keep_their_numbers() {
    let mut host = Host::new(vec![known(10, 1, 5, CELERY), known(20, 1, 6, CELERY), known(30, 1, 7, "python|x.py")]);
    let slots = host.slots();
    assert!(slots[0].starts_with("celery/none/") && slots[0].ends_with("/1000/1"), "{slots:?}");
    assert_eq!(slots[1], format!("{}2", &slots[0][..slots[0].len() - 1]));
    assert!(slots[2].starts_with("python/none/") && slots[2].ends_with("/1000/1"));
    // The first one ends; a new one takes its place, and the second one keeps its own.
    host.python.remove(&Pid(10));
    assert_eq!(host.slots()[0], slots[1]);
    host.python.insert(Pid(40), known(40, 1, 8, CELERY));
    let looked = host.look();
    let slot = |pid: u32| {
        let unit = looked.units.iter().find(|unit| unit.id.as_str() == format!("celery:{pid}"));
        unit.expect("unit").slot.to_string()
    };
    assert_eq!((slot(40), slot(20)), (slots[0].clone(), slots[1].clone()));
}

/// The numbers of a host's units as they would be remembered.
fn remembered(host: &mut Host) -> Numbering {
    slot::numbering(&host.look().units, &BTreeSet::new(), "boot")
}

#[test]
fn a_living_process_keeps_its_number_across_a_restart_of_the_agent() {
    let mut host = Host::new(vec![known(10, 1, 5, CELERY), known(20, 1, 6, CELERY), known(30, 1, 7, CELERY)]);
    let slots = host.slots();
    let kept = remembered(&mut host);
    assert_eq!(kept.given.keys().map(SlotId::as_str).collect::<Vec<_>>(), slots);
    // While no agent runs, the second one ends, and another is started.
    host.python.remove(&Pid(20));
    host.python.insert(Pid(40), known(40, 1, 8, CELERY));
    host.numbers = Numbers::recalled(&kept, "boot");
    let by_slot = |host: &mut Host| -> Vec<(String, String)> {
        host.look().units.iter().map(|unit| (unit.slot.to_string(), unit.id.to_string())).collect()
    };
    let expected: Vec<(String, String)> =
        slots.iter().cloned().zip(["celery:10", "celery:40", "celery:30"].map(str::to_owned)).collect();
    assert_eq!(by_slot(&mut host), expected);
    // The first one alone goes, as where it was drained: nobody takes its place unasked.
    let kept = remembered(&mut host);
    host.python.remove(&Pid(10));
    host.numbers = Numbers::recalled(&kept, "boot");
    assert_eq!(by_slot(&mut host), expected[1..]);
}

#[test]
fn numbers_of_another_boot_or_of_nothing_that_can_be_read_are_forgotten() {
    let mut host = Host::new(vec![known(10, 1, 5, CELERY), known(20, 1, 6, CELERY)]);
    let slots = host.slots();
    let kept = remembered(&mut host);
    host.python.remove(&Pid(10));
    let mut check = |kept: &Numbering, boot_id: &str, expected: &str| {
        host.numbers = Numbers::recalled(kept, boot_id);
        assert_eq!(host.slots(), [expected], "{kept:?} in {boot_id}");
    };
    check(&kept, "boot", &slots[1]);
    check(&kept, "another boot", &slots[0]);
    check(&Numbering { boot_id: String::new(), ..kept.clone() }, "", &slots[0]);
    let root = ProcessIdentity { pid: Pid(20), start_ticks: 200, pid_namespace: 1 };
    for name in ["celery", "/2", "celery/", "celery/none/-1", "celery/none/99999999999"] {
        let given = BTreeMap::from([(SlotId::new(name).expect("name"), root)]);
        check(&Numbering { given, ..kept.clone() }, "boot", &slots[0]);
    }
    // A process that took the pid of one that has ended is another one.
    let other = ProcessIdentity { start_ticks: 7, ..root };
    let given = BTreeMap::from([(kept.given.keys().next_back().expect("two").clone(), other)]);
    check(&Numbering { given, ..kept.clone() }, "boot", &slots[0]);
}

#[test]
fn what_is_remembered_of_numbers_is_bounded_and_what_is_named_comes_first() {
    let mut supervised = known(5000, 1, 5000, CELERY);
    supervised.facts.cgroup = "/system.slice/shop.service".to_owned();
    let equal = (10..1_510).map(|pid| known(pid, 1, u64::from(pid), CELERY));
    let mut host = Host::new(equal.chain([supervised]).collect());
    let units = host.look().units;
    let last = units.iter().find(|unit| unit.id.as_str() == "celery:1509").expect("unit");
    let kept = slot::numbering(&units, &BTreeSet::from([&last.slot]), "boot").given;
    assert_eq!((kept.len(), kept.contains_key(&last.slot)), (1_000, true));
    assert!(kept.keys().all(|slot| slot.as_str().starts_with("celery/none/")));
}

#[test]
fn two_lives_of_a_supervised_unit_do_not_share_a_slot() {
    let in_service = |pid: u32, stack: u64| {
        let mut main = known(pid, 1, stack, CELERY);
        main.facts.cgroup = "/system.slice/shop.service".to_owned();
        main
    };
    let mut host = Host::new(vec![in_service(10, 5), in_service(20, 6)]);
    let looked = host.look();
    let slots: Vec<(&str, &str)> = looked.units.iter().map(|unit| (unit.id.as_str(), unit.slot.as_str())).collect();
    assert_eq!(slots, [("celery:20", "celery/systemd/shop.service"), ("celery:10", "celery/systemd/shop.service/2")]);
}

#[test]
fn parents_that_form_a_circle_end_the_search() {
    let mut host = Host::new(vec![known(10, 11, 5, CELERY), known(11, 10, 5, CELERY)]);
    assert!(!host.look().units.is_empty());
}
