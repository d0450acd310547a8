"""The training loop against steps taken by hand, against positions trained apart, and against itself when killed."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from pickglass.errors import InputError, TrainingError
from pickglass.nn.networks.stacked import Stacked
from pickglass.nn.training import checkpoint as checkpoint_module
from pickglass.nn.training import loop
from pickglass.nn.training.loop import Draws, EpochRecord, History, Phase, Plan, train_all

N, C = 10, 3


class Killed(Exception):
    """As the process might be, at any step."""


class Net(nn.Module):
    """Learned, normalised with running statistics, and with dropout: all that a checkpoint must bring back."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(C, 5), nn.BatchNorm1d(5), nn.ReLU())
        self.last = nn.Linear(5, 1)

    def forward(self, x: Tensor, draws: Draws) -> Tensor:
        x = self.net(x)
        return self.last(draws.dropout(x, 0.3) if self.training else x)


class Images:
    """N images of P positions, (N, P, C), and what was asked of them."""

    def __init__(self, positions: int = 2, n: int = N, seed: int = 0) -> None:
        self.x = torch.randn(n, positions, C, generator=torch.Generator().manual_seed(seed))
        self.asked: list[list[int]] = []

    def __call__(self, indices: Sequence[int]) -> Tensor:
        self.asked.append(list(indices))
        return self.x[list(indices)]


def dropping(draws: Draws, positions: int = 2) -> tuple[Stacked, Callable[[Tensor], Tensor]]:
    stack = Stacked(Net, positions, 0)
    return stack, lambda x: (stack(x, draws) - x.sum(2, keepdim=True)).square().mean((0, 2))


def linear(seed: int = 0, positions: int = 1) -> tuple[Stacked, Callable[[Tensor], Tensor]]:
    """No random numbers, no statistics."""
    stack = Stacked(lambda: nn.Linear(C, 1), positions, seed)
    return stack, lambda x: (stack(x)[..., 0] - x[..., 0].square()).square().mean(0)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name]), name


def order(n: int, epochs: int, batch: int, seed: int = 0) -> list[list[int]]:
    """Which images each step saw."""
    images = Images(1, n)
    stack, loss = linear()
    train_all([Phase("p", stack, loss, Plan(epochs=epochs, batch=batch))], images, n, seed=seed)
    return images.asked


# -- steps -------------------------------------------------------------------------------------------------------------


def test_a_step_of_sgd_by_hand() -> None:
    """w = 2, one image x = 3, loss (w x)^2 / 2: gradient 18, with weight decay 0.5 w 19, then 0.9 of it again."""
    weight = nn.ParameterList([nn.Parameter(torch.tensor([2.0]))])
    plan = Plan(steps=2, batch=1, optimiser="sgd", lr=0.1, momentum=0.9, weight_decay=0.5)
    history = train_all(
        [Phase("w", weight, lambda x: (weight[0] * x).square() / 2, plan)], lambda _: torch.tensor([3.0]), 1, seed=0
    )
    first = 2 - 0.1 * (9 * 2 + 0.5 * 2)  # 0.1
    velocity = 0.9 * 19 + (9 * first + 0.5 * first)
    assert weight[0].item() == pytest.approx(first - 0.1 * velocity, rel=1e-5)
    assert history[0].train == [[pytest.approx(18.0)], [pytest.approx(0.045, rel=1e-4)]]
    assert history[0].picked == [2]


def test_steps_of_adam_by_hand() -> None:
    """Kingma and Ba 2015, algorithm 1, written out."""
    weight = nn.ParameterList([nn.Parameter(torch.tensor([2.0, -1.0]))])
    plan = Plan(steps=3, batch=1, lr=0.1, betas=(0.8, 0.9), eps=1e-3)
    train_all([Phase("w", weight, lambda x: weight[0].square() * x, plan)], lambda _: torch.tensor(3.0), 1, seed=0)
    for w, trained in zip((2.0, -1.0), weight[0].tolist(), strict=True):
        m = v = 0.0
        for t in (1, 2, 3):
            g = 6 * w
            m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
            w -= 0.1 * (m / (1 - 0.8**t)) / ((v / (1 - 0.9**t)) ** 0.5 + 1e-3)
        assert trained == pytest.approx(w, rel=1e-5)


def test_parts_of_a_module_have_learning_rates_of_their_own(tmp_path: Path) -> None:
    """w' = w - lr factor gradient, with gradient 2 w; killed after a step, both go on with their own rate."""

    def phase(factors: dict[str, float]) -> Phase[Tensor]:
        module = nn.ModuleDict({name: nn.ParameterList([nn.Parameter(torch.ones(1))]) for name in ("slow", "fast")})
        plan = Plan(steps=2, batch=1, optimiser="sgd", lr=0.1, lr_factors=factors)
        return Phase("two", module, lambda _: sum(p.square() for p in module.parameters()), plan)  # type: ignore[arg-type, return-value]

    def values(trained: Phase[Tensor]) -> list[float]:
        return [float(p.detach()) for p in trained.module.parameters()]

    whole, stopped = phase({"slow": 0.5}), phase({"slow": 0.5})
    train_all([whole], lambda _: torch.ones(1), 1, seed=0)
    assert values(whole) == [pytest.approx(0.9**2), pytest.approx(0.8**2)]

    def kill(stage: str, done: int, total: int) -> None:
        if done == 2:
            raise Killed

    file = tmp_path / "t.safetensors"
    with pytest.raises(Killed):
        train_all([stopped], lambda _: torch.ones(1), 1, seed=0, checkpoint=file, checkpoint_s=0, progress=kill)
    again = phase({"slow": 0.5})
    train_all([again], lambda _: torch.ones(1), 1, seed=0, checkpoint=file, checkpoint_s=0)
    assert values(again) == values(whole)
    with pytest.raises(InputError, match="checkpoint of another fit"):
        train_all([phase({"slow": 0.4})], lambda _: torch.ones(1), 1, seed=0, checkpoint=file)
    with pytest.raises(InputError, match=r"no parameter of phase 'two' lies under 'slo'.*fast"):
        train_all([phase({"slo": 0.5})], lambda _: torch.ones(1), 1, seed=0)
    with pytest.raises(InputError, match="factors above 0"):
        phase({"slow": 0.0})


def test_each_epoch_sees_every_image_once_in_another_order_that_the_seed_decides() -> None:
    asked = order(N, epochs=3, batch=4)
    assert [len(batch) for batch in asked] == [4, 4, 2] * 3
    epochs = [[i for batch in asked[at : at + 3] for i in batch] for at in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(N)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert order(N, 3, 4) == asked
    assert order(N, 3, 4, seed=1) != asked


def test_batches_and_steps() -> None:
    def sizes(n: int, plan: Plan) -> list[int]:
        images = Images(1, n)
        stack, loss = linear()
        train_all([Phase("p", stack, loss, plan)], images, n, seed=0)
        return [len(batch) for batch in images.asked]

    assert sizes(10, Plan(epochs=2, batch=4, drop_last=True)) == [4, 4] * 2
    assert sizes(3, Plan(epochs=2, batch=8)) == [3, 3]
    assert sizes(3, Plan(epochs=2, batch=8, drop_last=True)) == [3, 3]
    assert sizes(10, Plan(steps=7, batch=4)) == [4, 4, 2, 4, 4, 2, 4]


def test_the_rate_falls_at_its_milestone() -> None:
    rates = [Plan(steps=20, lr=1, milestone=0.95).rate(i, 20) for i in range(20)]
    assert rates == [1.0] * 19 + [0.1]
    assert {Plan(steps=20, lr=1).rate(i, 20) for i in range(20)} == {1.0}
    rates = [Plan(steps=10, lr=1, milestone=(0.8, 0.9), gamma=0.5).rate(i, 10) for i in range(10)]
    assert rates == [1.0] * 8 + [0.5, 0.25]

    weight = nn.ParameterList([nn.Parameter(torch.zeros(1))])
    plan = Plan(steps=4, batch=1, optimiser="sgd", lr=1.0, milestone=0.5, gamma=0.25)
    records: list[EpochRecord] = []
    train_all(
        [Phase("w", weight, lambda x: weight[0] * x, plan)], lambda _: torch.ones(1), 1, seed=0, callback=records.append
    )
    assert weight[0].item() == -(1 + 1 + 0.25 + 0.25)
    assert [record.lr for record in records] == [1.0, 1.0, 0.25, 0.25]


def test_adamw_takes_the_decay_off_the_weights_and_not_into_the_gradient() -> None:
    weight = nn.ParameterList([nn.Parameter(torch.ones(1))])
    plan = Plan(steps=1, optimiser="adamw", lr=0.1, weight_decay=0.5)
    train_all([Phase("w", weight, lambda x: weight[0] * x, plan)], lambda _: torch.ones(1), 1, seed=0)
    assert weight[0].item() == pytest.approx(1 - 0.1 * 0.5 - 0.1)  # the decay, then a step of the learning rate


def test_what_is_told_on_the_way() -> None:
    stack, loss = linear(positions=2)
    told: list[tuple[str, int, int]] = []
    records: list[EpochRecord] = []
    (history,) = train_all(
        [Phase("flow", stack, loss, Plan(epochs=2, batch=4))],
        Images(),
        N,
        Images(seed=1),
        5,
        seed=0,
        progress=lambda *args: told.append(args),
        callback=records.append,
    )
    assert told == [("training flow", i + 1, 6) for i in range(6)]
    assert [(r.phase, r.epoch, r.step, r.steps) for r in records] == [("flow", 1, 3, 6), ("flow", 2, 6, 6)]
    assert [list(r.train) for r in records] == history.train
    assert [list(r.validation or ()) for r in records] == history.validation
    assert 0 < records[0].seconds <= records[1].seconds <= history.seconds
    assert History(**history.to_json()) == history


def test_the_mean_loss_weighs_every_image_alike() -> None:
    stack, loss = linear(positions=2)
    plan = Plan(epochs=1, batch=4, optimiser="sgd", lr=1e-30)  # stays where it is
    images, unseen = Images(), Images(n=5, seed=1)
    (history,) = train_all([Phase("p", stack, loss, plan)], images, N, unseen, 5, seed=0, autocast="off")
    torch.testing.assert_close(torch.tensor(history.train[0]), loss(images.x).detach())
    torch.testing.assert_close(torch.tensor(history.validation[0]), loss(unseen.x).detach())
    assert unseen.asked == [[0, 1, 2, 3], [4]]


# -- positions and epochs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_two_positions_learn_what_each_alone_would(optimiser: str) -> None:
    plan = Plan(epochs=6, batch=4, optimiser=optimiser, lr=0.05, momentum=0.5, weight_decay=1e-3, pick="best")  # type: ignore[arg-type]
    images, unseen = Images(), Images(n=4, seed=1)
    images.x, unseen.x = images.x.double(), unseen.x.double()  # what is left is rounding, far below the tolerance
    together, loss = linear(seed=7, positions=2)
    together.double()
    (both,) = train_all([Phase("p", together, loss, plan)], images, N, unseen, 4, seed=3, autocast="off")
    for p in range(2):
        alone, own_loss = linear(seed=7 + p)
        alone.double()
        (history,) = train_all(
            [Phase("p", alone, own_loss, plan)],
            lambda i, p=p: images.x[list(i), p : p + 1],
            N,
            lambda i, p=p: unseen.x[list(i), p : p + 1],
            4,
            seed=3,
            autocast="off",
        )
        for name, tensor in alone.state_dict().items():
            torch.testing.assert_close(together.state_dict()[name][p], tensor[0], rtol=1e-6, atol=0)
        assert both.picked[p] == history.picked[0]
        assert [epoch[p] for epoch in both.train] == pytest.approx([epoch[0] for epoch in history.train], rel=1e-6)


class Walk(nn.Module):
    """Three positions that go one to the right with each step of SGD at rate 1, each past its aim or away from it."""

    def __init__(self, kill_at: int = -1) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.zeros(3))
        self.register_buffer("epoch", torch.zeros(3, 2))
        self.aim = torch.tensor([2.0, -1.0, 2.5])
        self.kill_at = kill_at

    def loss(self, batch: Tensor) -> Tensor:
        if not self.training:
            return (self.at - self.aim).abs()
        if self.kill_at == int(self.epoch[0, 0]):
            raise Killed
        self.epoch += 1
        return -self.at

    def go(self, path: Path | None = None) -> History:
        plan = Plan(epochs=4, batch=1, optimiser="sgd", lr=1.0, pick="best")
        phase, one = Phase("walk", self, self.loss, plan), Images(1, 1)
        return train_all([phase], one, 1, one, 1, seed=0, autocast="off", checkpoint=path, checkpoint_s=0)[0]


def test_the_best_epoch_is_kept_per_position_buffers_included(tmp_path: Path) -> None:
    """The earlier of equal epochs counts, also for a training that was killed after its best epochs."""
    with pytest.raises(Killed):
        Walk(kill_at=3).go(tmp_path / "c.safetensors")
    for path in (None, tmp_path / "c.safetensors"):
        walk = Walk()
        history = walk.go(path)
        assert history.validation == [[1, 2, 1.5], [0, 3, 0.5], [1, 4, 0.5], [2, 5, 1.5]]
        assert history.picked == [2, 1, 2]
        assert walk.at.tolist() == [2, 1, 2]
        assert walk.epoch.tolist() == [[2, 2], [1, 1], [2, 2]]
        assert not walk.training


def test_validation_changes_nothing_and_draws_the_same_numbers_each_time() -> None:
    states = []
    for n_validate in (0, 5):
        draws = Draws()
        stack, own = dropping(draws)
        drawn: list[float] = []

        def loss(
            x: Tensor, stack: Stacked = stack, own: object = own, drawn: list[float] = drawn, draws: Draws = draws
        ) -> Tensor:
            noise = torch.rand(2, generator=draws.on("cpu"))
            if not stack.training:
                drawn.append(noise.tolist())
            return own(x) + noise  # type: ignore[operator]

        phase = Phase("p", stack, loss, Plan(epochs=3, batch=4), draws=draws)
        train_all([phase], Images(), N, Images(seed=1), n_validate, seed=0)
        states.append(state(stack))
    assert_same(*states)
    assert drawn[:2] == drawn[2:4] == drawn[4:]
    assert drawn[0] != drawn[1]


def test_random_numbers_are_seeded_and_the_callers_left_alone() -> None:
    states = []
    for caller_seed, name in ((1, "p"), (2, "p"), (1, "q")):
        draws = Draws(caller_seed)
        stack, loss = dropping(draws)
        torch.manual_seed(caller_seed)
        before = torch.get_rng_state()
        with torch.no_grad():  # the caller's grad mode is no concern either
            phase = Phase(name, stack, loss, Plan(epochs=2, batch=4), draws=draws)
            train_all([phase], Images(), N, seed=0)
        assert torch.equal(torch.get_rng_state(), before)
        states.append(state(stack))
    assert_same(states[0], states[1])
    assert not torch.equal(states[0]["tree.net.0.weight"], states[2]["tree.net.0.weight"])  # other dropout


@pytest.mark.parametrize("draw", [F.dropout, torch.rand_like, lambda x: torch.empty_like(x).normal_()])
def test_a_loss_that_draws_from_the_generator_of_all_threads_is_refused(draw: Callable[[Tensor], Tensor]) -> None:
    stack, loss = linear()
    phase = Phase("p", stack, lambda x: loss(draw(x)), Plan(epochs=1, batch=4))
    with pytest.raises(RuntimeError, match=r"phase 'p' draws by aten::[\w.]+ from torch's default .*draws.dropout"):
        train_all([phase], Images(1), N, seed=0)
    phase = Phase("p", stack, lambda x: loss(F.dropout(x, 0.0)), Plan(epochs=1, batch=4))
    train_all([phase], Images(1), N, seed=0)


def test_draws_go_on_from_a_state_and_go_along_in_copies() -> None:
    draws = Draws(5)
    torch.rand(3, generator=draws.on("cpu"))
    copied, other = pickle.loads(pickle.dumps(draws)), Draws(5)
    other.restore(draws.state())
    with draws.aside(7):
        assert torch.equal(torch.rand(3, generator=draws.on("cpu")), torch.rand(3, generator=Draws(7).on("cpu")))
    x = torch.ones(50, 40)
    one, two, three = (of.dropout(x, 0.25) for of in (draws, copied, other))
    assert torch.equal(one, two)
    assert torch.equal(one, three)
    assert one.unique().tolist() == pytest.approx([0, 4 / 3])
    torch.manual_seed(3)
    expected = F.dropout(x, 0.25)
    assert torch.equal(Draws(3).dropout(x, 0.25), expected)  # the numbers are torch's own


# -- killed and gone on ------------------------------------------------------------------------------------------------


def two_phases(kill_at: int = -1) -> tuple[list[nn.Module], list[Phase[Tensor]]]:
    """The second learns from the first's module; the loss of training step ``kill_at`` of both together raises."""
    draws, others = Draws(), Draws()
    first, first_loss = dropping(draws)
    second, _ = dropping(others)
    steps = 0

    def counted(module: nn.Module, loss: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def count(x: Tensor) -> Tensor:
            nonlocal steps
            if steps == kill_at and module.training and torch.is_grad_enabled():
                raise Killed
            steps += module.training and torch.is_grad_enabled()
            return loss(x)

        return count

    def second_loss(x: Tensor) -> Tensor:
        noise = torch.rand(2, generator=others.on("cpu"))
        return (second(x, others) - first(x, others).detach()).square().mean((0, 2)) + noise

    plan = Plan(epochs=3, batch=4, lr=0.05, milestone=0.6, pick="best")
    other = Plan(steps=7, batch=4, lr=0.05, optimiser="sgd", momentum=0.9)
    return [first, second], [
        Phase("first", first, counted(first, first_loss), plan, draws=draws),
        Phase("second", second, counted(second, second_loss), other, draws=others),
    ]


def run(phases: list[Phase[Tensor]], path: Path | None = None, fingerprint: str = "a", seed: int = 0) -> list[History]:
    return train_all(
        phases, Images(), N, Images(n=4, seed=1), 4, seed=seed, checkpoint=path, fingerprint=fingerprint, checkpoint_s=0
    )


# 9 steps in the first phase, three an epoch, and 7 in the second
@pytest.mark.parametrize("kill_at", [[1], [4], [3], [8], [9], [10], [13], [15], [2, 5, 12]])
def test_killed_it_goes_on_to_the_same_bits(kill_at: list[int], tmp_path: Path) -> None:
    modules, phases = two_phases()
    expected = run(phases)
    path, done = tmp_path / "c.safetensors", 0
    for at in kill_at:
        _, again = two_phases(kill_at=at - done)  # counted anew after each start
        with pytest.raises(Killed):
            run(again, path)
        done = at
    resumed, again = two_phases()
    histories = run(again, path)
    for one, two in zip(resumed, modules, strict=True):
        assert_same(one.state_dict(), two.state_dict())
    for history, other in zip(histories, expected, strict=True):
        assert {**history.to_json(), "seconds": 0} == {**other.to_json(), "seconds": 0}
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


def test_finished_it_takes_no_step_again(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    modules, phases = two_phases()
    expected = run(phases, path)
    again, phases = two_phases(kill_at=0)
    assert run(phases, path) == expected
    for one, two in zip(again, modules, strict=True):
        assert_same(one.state_dict(), two.state_dict())


def test_checkpoints_are_written_as_often_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.125
        return now

    save = checkpoint_module.Checkpoint.save
    monkeypatch.setattr(
        checkpoint_module.Checkpoint,
        "save",
        lambda self, header, tensors: (written.append(1), save(self, header, tensors)),
    )
    monkeypatch.setattr(loop.time, "monotonic", clock)
    stack, loss = linear()
    phase = Phase("p", stack, loss, Plan(steps=50, batch=4))
    train_all([phase], Images(1), N, seed=0, checkpoint=tmp_path / "c.safetensors", checkpoint_s=1.0)
    assert 4 <= len(written) <= 8  # the clock is asked about once a step: 50 / 8, and the end


def test_a_module_in_two_phases_is_saved_and_goes_on(tmp_path: Path) -> None:
    def phases(fail: bool) -> tuple[Stacked, list[Phase[Tensor]]]:
        stack, loss = linear()

        def failing(x: Tensor) -> Tensor:
            if fail and torch.is_grad_enabled():
                raise Killed
            return loss(x)

        plan = Plan(steps=3, batch=4, lr=0.1)
        return stack, [Phase("one", stack, loss, plan), Phase("two", stack, failing, plan)]

    expected, whole = phases(fail=False)
    train_all(whole, Images(1), N, seed=0)
    path = tmp_path / "c.safetensors"
    with pytest.raises(Killed):
        train_all(phases(fail=True)[1], Images(1), N, seed=0, checkpoint=path, checkpoint_s=0)
    stack, again = phases(fail=False)
    train_all(again, Images(1), N, seed=0, checkpoint=path, checkpoint_s=0)
    assert_same(stack.state_dict(), expected.state_dict())


def test_a_checkpoint_of_another_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    run(two_phases()[1], path)
    message = "c.safetensors: a checkpoint of another fit .*delete it to train anew, or name another file"
    with pytest.raises(InputError, match=message):
        run(two_phases()[1], path, fingerprint="b")
    with pytest.raises(InputError, match=message):
        run(two_phases()[1], path, seed=1)
    stack, loss = dropping(Draws())
    with pytest.raises(InputError, match=message):
        run([Phase("first", stack, loss, Plan(epochs=3, batch=5))], path)


def test_other_files_are_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="is not a checkpoint of a training: name another file"):
        run(two_phases()[1], path)
    assert path.read_bytes() == before
    path.write_bytes(before[:20])
    with pytest.raises(InputError, match=r"not a readable checkpoint .*: delete it"):
        run(two_phases()[1], path)
    with pytest.raises(InputError, match="in an existing folder"):
        run(two_phases()[1], tmp_path / "missing" / "c.safetensors")


# -- gone astray -------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_nan_before_the_first_step_is_not_blamed_on_the_learning_rate() -> None:
    stack, loss = linear(positions=2)
    message = "training flow: loss is nan, nan before the first step, so the learning rate is not the cause: look for"
    with pytest.raises(TrainingError, match=message):
        train_all(
            [Phase("flow", stack, lambda x: loss(x) * torch.nan, Plan(epochs=1, batch=4))],
            Images(),
            N,
            seed=0,
            autocast="off",
        )


def test_a_loss_that_is_not_finite_is_named() -> None:
    stack, loss = linear(positions=2)
    steps = 0

    def exploding(x: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        return loss(x) / torch.tensor([1.0, 0.0 if steps == 5 else 1.0])

    with pytest.raises(
        TrainingError, match=r"training flow: loss is .*, inf in epoch 2, step 2 of 3: lower lr, now 0.4, e.g. to 0.04"
    ):
        train_all(
            [Phase("flow", stack, exploding, Plan(epochs=3, batch=4, lr=0.4))], Images(), N, seed=0, autocast="off"
        )


def test_a_validation_loss_and_weights_that_are_not_finite_are_named() -> None:
    weight = nn.ParameterList([nn.Parameter(torch.ones(1))])

    def unfit(x: Tensor) -> Tensor:
        return weight[0] if weight.training else weight[0] * torch.nan

    plan = Plan(steps=1, batch=1, optimiser="sgd")
    with pytest.raises(TrainingError, match="training w: validation loss is nan in epoch 1"):
        train_all([Phase("w", weight, unfit, plan)], lambda _: torch.ones(1), 1, lambda _: torch.ones(1), 1, seed=0)
    with pytest.raises(TrainingError, match="training w: 0 is not finite in epoch 1, step 1 of 1: lower lr"):
        train_all(
            [
                Phase(
                    "w",
                    weight,
                    lambda x: weight[0].sqrt() * 0,
                    Plan(steps=1, lr=1e38, batch=1, optimiser="sgd", weight_decay=1e38),
                )
            ],
            lambda _: torch.ones(1),
            1,
            seed=0,
        )


def test_what_cannot_be_trained_is_refused() -> None:
    stack, loss = linear()
    with pytest.raises(InputError, match=r"phase 'flow' keeps the epoch .* give validate"):
        train_all([Phase("flow", stack, loss, Plan(epochs=1, pick="best"))], Images(1), N, seed=0)
    with pytest.raises(InputError, match="no image to train on"):
        train_all([Phase("flow", stack, loss, Plan(epochs=1))], Images(1), 0, seed=0)
    with pytest.raises(RuntimeError, match=r"the loss of phase 'flow' has shape \(\), expected \(P,\)"):
        train_all([Phase("flow", stack, lambda x: loss(x).sum(), Plan(epochs=1))], Images(1), N, seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give exactly one of the two"),
        ({"epochs": 1, "steps": 1}, "give exactly one of the two"),
        ({"epochs": 0}, "epochs=0: expected a whole number from 1"),
        ({"steps": 2.5}, "steps=2.5: expected a whole number"),
        ({"epochs": 1, "batch": 0}, "batch=0"),
        ({"epochs": 1, "lr": 0.0}, "lr=0.0"),
        ({"epochs": 1, "lr": float("nan")}, "lr=nan"),
        ({"epochs": 1, "optimiser": "lion"}, "optimiser='lion': expected 'adam', 'adamw' or 'sgd'"),
        ({"epochs": 1, "pick": "first"}, "pick='first'"),
        ({"epochs": 1, "milestone": 95}, "milestone=95"),
        ({"epochs": 1, "milestone": (0.8, 9.0)}, r"milestone=\(0\.8, 9\.0\)"),
    ],
)
def test_a_plan_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Plan(**settings)  # type: ignore[arg-type]


# -- bfloat16 ----------------------------------------------------------------------------------------------------------


def trained_with(
    monkeypatch: pytest.MonkeyPatch, fast: bool, offset: float, autocast: str
) -> tuple[History, list[str]]:
    """One training whose loss is ``offset`` beside the truth in bfloat16; and the type its products had."""
    monkeypatch.setattr(loop, "has_fast_bfloat16", lambda: fast)
    draws = Draws()
    stack, _ = dropping(draws, positions=1)
    types: list[str] = []

    def loss(x: Tensor) -> Tensor:
        y = stack(x, draws)
        types.append(str(y.dtype))
        return F.mse_loss(y.float(), x.sum(2, keepdim=True))[None] * 0 + 1 + offset * (y.dtype == torch.bfloat16)

    (history,) = train_all(
        [Phase("p", stack, loss, Plan(steps=2, batch=4))],
        Images(1),
        N,
        seed=0,
        autocast=autocast,  # type: ignore[arg-type]
    )
    return history, types


def test_bfloat16_where_it_is_fast_and_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    full, half = "torch.float32", "torch.bfloat16"
    history, types = trained_with(monkeypatch, True, 0.009, "auto")
    assert (history.autocast, types) == (True, [full, half, half, half])
    history, types = trained_with(monkeypatch, True, 0.011, "auto")
    assert (history.autocast, types) == (False, [full, half, full, full])
    assert trained_with(monkeypatch, False, 0, "auto")[1] == [full, full]
    assert trained_with(monkeypatch, True, 0, "off")[1] == [full, full]
    with pytest.raises(InputError, match="autocast='on'"):
        trained_with(monkeypatch, True, 0, "on")


def test_trying_bfloat16_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_PARITY", -1.0)  # tried and given up
    states = []
    for fast in (True, False):
        monkeypatch.setattr(loop, "has_fast_bfloat16", lambda fast=fast: fast)
        draws = Draws()
        stack, loss = dropping(draws)
        (history,) = train_all([Phase("p", stack, loss, Plan(steps=3, batch=4), draws=draws)], Images(), N, seed=0)
        assert not history.autocast
        states.append(state(stack))
    assert_same(*states)
