#!/usr/bin/env python
"""Trains and generates with BigGAN-PyTorch, for `tools/benchmark.py --peer`.

A process of its own, since PyTorch and TensorFlow in one would share neither
threads nor memory well. Needs PyTorch and NumPy, and nothing of kinv. Reads
`training` or `generation`, one a line, and answers when it is done.
"""

import argparse
import json
import sys


def main():
    """Builds the networks, then does as it is told until input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("checkout", help="of BigGAN-PyTorch")
    add("--image-size", type=int, required=True)
    add("--base-channels", type=int, required=True)
    add("--batch-size", type=int, required=True)
    add("--num-classes", type=int, required=True)
    add("--steps", type=int, required=True)
    add(
        "--discriminator-channels",
        type=int,
        nargs="+",
        help="of its blocks, in units of --base-channels; default: its own",
    )
    options = parser.parse_args()
    # What the networks print goes elsewhere: answers alone go to stdout.
    answers, sys.stdout = sys.stdout, sys.stderr
    sys.path.insert(0, options.checkout)
    train, generate, about = make_workloads(options)
    workloads = {"training": train, "generation": generate}
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
    """Makes functions that train, and generate, `--steps` batches.

    Returns:
        both functions, and a dict that describes the networks.
    """
    import BigGAN
    import losses
    import torch

    size = options.image_size
    generator, average, discriminator = make_networks(options)
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

    def step():
        learns(discriminator, True)
        learns(generator, False)
        for part in range(2):
            discriminator.optim.zero_grad()
            rows = slice(part * batch, (part + 1) * batch)
            fake, real = both(*draw(), images[rows], labels[rows])
            loss = sum(losses.discriminator_loss(fake, real))
            loss.backward()
            discriminator.optim.step()
        learns(discriminator, False)
        learns(generator, True)
        generator.optim.zero_grad()
        loss = losses.generator_loss(both(*draw(), train_G=True))
        loss.backward()
        generator.optim.step()
        with torch.no_grad():
            state = generator.state_dict()
            for name, value in average.state_dict().items():
                value.copy_(value * 0.9999 + state[name] * 0.0001)

    def train():
        for _ in range(options.steps):
            step()

    def generate():
        average.eval()
        with torch.no_grad():
            for _ in range(options.steps):
                noise, label = draw()
                average(noise, average.shared(label))

    about = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "generator_parameters": count_parameters(generator),
        "discriminator_parameters": count_parameters(discriminator),
    }
    return train, generate, about


def count_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


if __name__ == "__main__":
    main()
