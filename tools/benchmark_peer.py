#!/usr/bin/env python
"""Trains and generates with BigGAN-PyTorch, for the benchmarks' `--peer`.

Takes the checkout and, as JSON, the sizes that `benchmark.start_peers` sends.
A process of its own, since PyTorch and TensorFlow in one would share neither
threads nor memory well. Needs PyTorch and NumPy, and nothing of kinv; takes a
GPU where there is one. Reads lines and answers each when it is done:

- `training`: steps of two discriminator updates and one of the generator;
- `gradients, float32`: their gradients alone;
- `gradients, mixed_bfloat16`: the same with automatic mixed precision;
- `generation`: batches of the averaged generator.
"""

import functools
import json
import os
import sys
import types


def main():
    """Builds the networks, then does as it is told until input ends."""
    checkout, sizes = sys.argv[1:]
    options = types.SimpleNamespace(**json.loads(sizes))
    # What the networks print goes nowhere: answers alone go to stdout.
    answers, sys.stdout = sys.stdout, open(os.devnull, "w", encoding="utf-8")
    sys.path.insert(0, checkout)
    workloads, about = make_workloads(options)
    print(json.dumps(about), file=answers, flush=True)
    for line in sys.stdin:
        workloads[line.strip()]()
        print("done", file=answers, flush=True)


def make_networks(options):
    """Makes the generator, a copy for its average, and the discriminator."""
    import BigGAN
    import torch

    size, channels = options.image_size, options.base_channels
    if widths := options.discriminator_channels:
        outputs = [channels * width for width in widths]
        arch = {
            "in_channels": [3, *outputs[:-1]],
            "out_channels": outputs,
            "downsample": [True] * (len(outputs) - 1) + [False],
            "resolution": [
                max(size >> (i + 1), 4) for i in range(len(outputs))
            ],
            "attention": {size >> i: i == 1 for i in range(8)},
        }
        BigGAN.D_arch = lambda *args, **kwargs: {size: arch}
    torch.manual_seed(0)
    # The flags of scripts/launch_BigGAN_bs256x8.sh that concern the networks.
    # Attention where the paper has it: at half the size in D.
    shared = {
        "resolution": size,
        "n_classes": options.num_classes,
        "SN_eps": 1e-6,
        "adam_eps": 1e-6,
    }
    generator_options = {
        "G_ch": channels,
        "dim_z": 120,
        "shared_dim": 128,
        "hier": True,
        "G_shared": True,
        "G_attn": str(size),
        **shared,
    }
    generator = BigGAN.Generator(**generator_options)
    average = BigGAN.Generator(
        **generator_options, skip_init=True, no_optim=True
    )
    average.load_state_dict(generator.state_dict())
    discriminator = BigGAN.Discriminator(
        D_ch=channels, D_attn=str(size // 2), **shared
    )
    return generator, average, discriminator


def make_workloads(options):
    """Makes functions that work through `steps` steps or batches.

    Returns:
        dict of them by what is read, and one that describes the networks.
    """
    import BigGAN
    import losses
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    torch.set_default_device(device)
    size = options.image_size
    generator, average, discriminator = (
        network.to(device) for network in make_networks(options)
    )
    both = BigGAN.G_D(generator, discriminator)
    batch = options.batch_size
    images = torch.rand(3 * batch, 3, size, size) * 2 - 1
    labels = torch.randint(options.num_classes, (3 * batch,))

    def draw():
        noise = torch.randn(batch, generator.dim_z)
        return noise, torch.randint(options.num_classes, (batch,))

    def learns(network, switched):
        for parameter in network.parameters():
            parameter.requires_grad = switched

    def step(update=False, mixed=False):
        autocast = functools.partial(
            torch.autocast, device, dtype=torch.bfloat16, enabled=mixed
        )
        learns(discriminator, True)
        learns(generator, False)
        for part in range(2):
            discriminator.optim.zero_grad()
            rows = slice(part * batch, (part + 1) * batch)
            with autocast():
                fake, real = both(*draw(), images[rows], labels[rows])
                loss = sum(losses.discriminator_loss(fake, real))
            loss.backward()
            if update:
                discriminator.optim.step()
        learns(discriminator, False)
        learns(generator, True)
        generator.optim.zero_grad()
        with autocast():
            loss = losses.generator_loss(both(*draw(), train_G=True))
        loss.backward()
        if not update:
            return
        generator.optim.step()
        with torch.no_grad():
            state = generator.state_dict()
            for name, value in average.state_dict().items():
                value.copy_(value * 0.9999 + state[name] * 0.0001)

    def generate():
        average.eval()
        with torch.no_grad():
            noise, label = draw()
            average(noise, average.shared(label))

    def repeated(function, **arguments):
        def work():
            for _ in range(options.steps):
                function(**arguments)
            if device == "cuda":
                torch.cuda.synchronize()

        return work

    workloads = {
        "training": repeated(step, update=True),
        "gradients, float32": repeated(step),
        "gradients, mixed_bfloat16": repeated(step, mixed=True),
        "generation": repeated(generate),
    }
    about = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "generator_parameters": count_parameters(generator),
        "discriminator_parameters": count_parameters(discriminator),
    }
    return workloads, about


def count_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


if __name__ == "__main__":
    main()
