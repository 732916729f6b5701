"""Which process of how many this one is, by the variables that schedulers set."""

import pytest

from medsd_jax.errors import UserError
from medsd_jax.parallel.launch import HostFlags, Launch, find_launch, first_host, tpu_hosts

# What `srun --ntasks=4 --nodes=2 --gpus-per-node=2` sets for its last task.
SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_JOB_NODELIST": "gpu[07-09]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "CUDA_VISIBLE_DEVICES": "0,1",
}
OPEN_MPI_5 = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "PMIX_NAMESPACE": "prterun-box-17@1",
}
OPEN_MPI_4 = {
    **OPEN_MPI_5,
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_MCA_orte_hnp_uri": "1778319360.0;tcp://10.96.0.1,10.0.0.1:34911",
}
TORCHRUN = {
    "WORLD_SIZE": "16",
    "RANK": "9",
    "LOCAL_WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "box0",
    "MASTER_PORT": "29500",
}
VARIABLES = {
    "JAX_COORDINATOR_ADDRESS": "box0:1234",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "1",
}
JAX_LAUNCH = Launch("the command line or JAX's variables", 2, 1, "box0:1234")


def test_slurm():
    launch = find_launch(HostFlags(), SLURM)
    # 61440 + 4097 % 4096: the same on every node, another one for another job.
    assert launch == Launch("Slurm", 4, 3, "gpu07:61441", [1])
    one_a_node = {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "1(x4)"}
    assert find_launch(HostFlags(), one_a_node).local_devices is None
    bound = {**SLURM, "SLURM_GPUS_PER_TASK": "1"}
    assert find_launch(HostFlags(), bound).local_devices is None
    assert find_launch(HostFlags(), {**SLURM, "JAX_COORDINATOR_PORT": "77"}).coordinator == (
        "gpu07:77"
    )


@pytest.mark.parametrize(
    "nodes, first",
    [
        ("box", "box"),
        ("box1,box2", "box1"),
        ("gpu[03-05,9],login", "gpu03"),
        ("r[1,3]n[2-4]", "r1n2"),
        ("a-b-[12]", "a-b-12"),
        ("gpu[3,5].site.edu", "gpu3.site.edu"),
    ],
)
def test_the_first_node_of_slurms_list(nodes, first):
    assert first_host(nodes) == first


def test_slurm_with_one_task_or_a_terminal_is_a_single_process():
    one = {**SLURM, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}
    assert find_launch(HostFlags(), one) is None
    assert find_launch(HostFlags(), {**SLURM, "SLURM_PTY_PORT": "3"}) is None


def test_a_batch_script_without_srun_is_refused():
    script = {key: value for key, value in SLURM.items() if "_STEP_" not in key}
    script["SLURM_PROCID"] = "0"
    with pytest.raises(UserError, match=r"4 tasks.*not started by srun.*JAX_NUM_PROCESSES=1"):
        find_launch(HostFlags(), script)
    assert find_launch(HostFlags(num_processes=1), script) is None
    assert find_launch(HostFlags(), {**script, "JAX_NUM_PROCESSES": "1"}) is None


def test_mpi_on_one_host_and_on_several():
    here = find_launch(HostFlags(), OPEN_MPI_5)
    assert (here.num_processes, here.process_id, here.local_devices) == (2, 1, [1])
    host, _, port = here.coordinator.partition(":")
    assert host == "localhost" and 61440 <= int(port) < 65536
    assert find_launch(HostFlags(), OPEN_MPI_4).coordinator.startswith("10.96.0.1:")
    unknown = {**OPEN_MPI_5, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
    with pytest.raises(UserError, match=r"Open MPI; say, too, where process 0 is: --coordinator"):
        find_launch(HostFlags(), unknown)
    launch = find_launch(HostFlags(coordinator="box0:1234"), unknown)
    assert (launch.num_processes, launch.process_id, launch.coordinator) == (2, 1, "box0:1234")
    hydra = {"PMI_SIZE": "2", "PMI_RANK": "0", "MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": "0"}
    assert find_launch(HostFlags(), hydra).process_id == 0


def test_torchrun_keeps_its_own_port():
    assert find_launch(HostFlags(), TORCHRUN).coordinator == "box0:29500"
    launch = find_launch(HostFlags(), {**TORCHRUN, "TORCHELASTIC_RUN_ID": "none"})
    assert launch == Launch("torchrun (WORLD_SIZE)", 16, 9, "box0:29501", [1])
    shared = {**TORCHRUN, "LOCAL_WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    assert find_launch(HostFlags(), shared).local_devices == [2, 3]


def test_variables_and_flags():
    assert find_launch(HostFlags(), VARIABLES) == JAX_LAUNCH
    assert find_launch(HostFlags("box0:1234", 2, 1), {}) == JAX_LAUNCH
    assert find_launch(HostFlags(process_id=0), VARIABLES).process_id == 0
    assert find_launch(HostFlags(num_processes=1), VARIABLES) is None
    assert find_launch(HostFlags("box0:1234", 2, 1), SLURM) == JAX_LAUNCH
    pod = {"JAX_COORDINATOR_ADDRESS": "job-0:1234", "JOB_COMPLETION_INDEX": "1"}
    assert find_launch(HostFlags(num_processes=2), pod).process_id == 1
    assert find_launch(HostFlags(), {}) is None


def test_a_slice_of_gke_needs_nothing_but_its_own_variables():
    names = {"TPU_WORKER_HOSTNAMES": "a,b,c,d", "TPU_WORKER_ID": "2"}
    assert tpu_hosts(names) == 4
    assert tpu_hosts({**names, "MEGASCALE_NUM_SLICES": "2"}) == 8
    assert tpu_hosts({"TPU_WORKER_HOSTNAMES": "localhost"}) == tpu_hosts({}) == 1
    assert find_launch(HostFlags(), names) is None
    assert find_launch(HostFlags(), {**names, "JAX_COORDINATOR_ADDRESS": "a:8476"}) is None


@pytest.mark.parametrize(
    "flags, variables, message",
    [
        (HostFlags(), {"JAX_COORDINATOR_ADDRESS": "a:1"}, "say, too, how many.*which one this is"),
        (HostFlags(num_processes=2), {}, "which one this is.*where process 0 is"),
        (HostFlags(process_id=1), {}, "how many there are"),
        (HostFlags("a:1", 2, 2), {}, "process 2 of 2 cannot be"),
        (HostFlags("a:1", 2, -1), {}, "process -1 of 2 cannot be"),
        (HostFlags("a:1", 0, 0), {}, "--num_processes 0 cannot be"),
        (HostFlags(None, 1, 3), {}, "--process_id 3 and a single process"),
        (HostFlags("a", 2, 1), {}, "--coordinator a is not of the form HOST:PORT"),
        (HostFlags("a:70000", 2, 1), {}, "a:70000 is not"),
        (HostFlags("http://a:80", 2, 1), {}, "http://a:80 is not"),
        (HostFlags(), {**VARIABLES, "JAX_PROCESS_ID": "one"}, "JAX_PROCESS_ID is one: .*whole"),
        (HostFlags(num_processes=8), SLURM, "8 processes were asked for.*Slurm started 4"),
        (HostFlags(), {**SLURM, "SLURM_NTASKS": "?", "SLURM_STEP_NUM_TASKS": ""}, "SLURM_NTASKS"),
    ],
)
def test_what_contradicts_or_lacks_is_one_line(flags, variables, message):
    with pytest.raises(UserError, match=message) as caught:
        find_launch(flags, variables)
    assert "\n" not in str(caught.value)
