#!/usr/bin/env python
"""Shows what a classifier's logits keep of given images.

Example:
    tools/invert.py --model exported/scenes32-robust photo.jpg --out grid.png
"""

import argparse
import csv
import pathlib
from typing import NamedTuple

from kinv import cli, errors, files

# Of the name of an image that the names of its reconstructions repeat: file
# systems take 255.
MAX_STEM_BYTES = 150
# Of the grid: Matplotlib takes three megabytes for each picture.
MAX_ROWS = 50
MAX_COLUMNS = 20
# Noises that --diverse chooses from.
CANDIDATES = 512


def parse_arguments(argv):
    """Reads the flags."""
    parser = argparse.ArgumentParser(
        description="Reconstruct images from a classifier's logits: each image "
        "beside reconstructions with different noise, and the class before "
        "and after. What changes with the noise, the generator did not find in "
        "the logits.",
        formatter_class=cli.HelpFormatter,
    )
    add = parser.add_argument
    add(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="image file, or folder of image files; cropped to the centred "
        "square",
    )
    add(
        "--model",
        required=True,
        metavar="MODEL",
        help="exported/NAME (its highest version), exported/NAME/VERSION, or a "
        "served model, grpc://HOST:PORT/NAME or "
        "http://HOST:PORT/v1/models/NAME",
    )
    add_sampling_flags(add)
    add_output_flags(add)
    cli.add_skip_unreadable(add)
    options = parser.parse_args(argv)
    if options.diverse is not None:
        if not 2 <= options.diverse <= CANDIDATES // 2:
            parser.error(
                f"argument --diverse: expected a number from 2 to "
                f"{CANDIDATES // 2}, received {options.diverse}"
            )
        options.samples = options.diverse
    if options.uncertainty and options.samples < 2:
        parser.error(
            "argument --samples: expected at least 2 with --uncertainty, "
            f"received {options.samples}"
        )
    if not options.out.lower().endswith(".png"):
        parser.error(
            f"argument --out: expected a name that ends in .png, received "
            f"{options.out!r}"
        )
    suffix = pathlib.Path(options.logits_out or ".csv").suffix
    if options.logits_out and suffix not in (".csv", ".npy"):
        parser.error(
            "argument --logits-out: expected a name that ends in .csv or "
            f".npy, received {options.logits_out!r}"
        )
    return options


def add_sampling_flags(add):
    """Which reconstructions are made of an image."""
    add(
        "--samples",
        type=errors.positive_int,
        default=4,
        metavar="NUMBER",
        help="reconstructions per image",
    )
    add(
        "--diverse",
        type=errors.positive_int,
        metavar="NUMBER",
        help=f"of {CANDIDATES} noises show this many reconstructions, those "
        "that differ most from each other, among those whose logits are read "
        "back no worse than usual; replaces --samples",
    )
    add(
        "--uncertainty",
        action="store_true",
        help="add a map of the standard deviation over the reconstructions",
    )
    add("--seed", type=errors.seed, default=0, help="of the noise")


def add_output_flags(add):
    """What is written, and where."""
    add(
        "--out",
        required=True,
        metavar="FILE",
        help=f"grid to write, a PNG, of {MAX_ROWS} images and {MAX_COLUMNS} "
        "reconstructions of each at most; the other outputs hold all",
    )
    add(
        "--images-out",
        metavar="DIR",
        help="new folder for every reconstruction as a PNG of its own",
    )
    add(
        "--logits-out",
        metavar="FILE",
        help="logits of the images: .csv with names, or .npy, float32 (images, "
        "classes)",
    )


def main(argv=None):
    """Inverts the images and writes the grid."""
    options = parse_arguments(argv)
    cli.announce_tensorflow()
    from kinv.serving import pipeline

    for output in (options.out, options.logits_out):
        cli.check_output(output)
    cli.check_parent(options.images_out)
    paths = find_readable(options)
    taken = {path.resolve() for path in paths}
    for output in filter(
        None, (options.out, options.logits_out, options.images_out)
    ):
        place = pathlib.Path(output).resolve()
        if place in taken:
            raise errors.InputError(
                "Expected outputs that are neither images nor each other. "
                f"Received: {output} twice. Choose another."
            )
        taken.add(place)
    model = pipeline.Pipeline.load(options.model)
    if options.images_out:
        files.new_directory(options.images_out)
    results = []
    try:
        invert(options, model, paths, results)
    finally:
        # What has been made is written, whatever stops the rest.
        if results:
            write(options, model, results)


class Inverted(NamedTuple):
    """What was made of an image."""

    path: pathlib.Path
    logits: object
    # Share of the reconstructions that get its class.
    agreement: float
    # As of `diversity.find`, without pictures; None without --diverse.
    diverse: object
    # Of its row in the grid: pictures, captions, and which of these to mark.
    pictures: list
    captions: list
    marked: list


def find_readable(options):
    """Paths of the images, each of which can be read; says what is left out."""
    from kinv import images

    paths, unreadable = [], []
    for name in options.images:
        found, left_out = images.list_images(name)
        if line := images.describe_left_out(left_out, f"left out of {name}: "):
            print(line)
        for path in found:
            try:
                images.decode(path)
                paths.append(path)
            except errors.InputError as error:
                unreadable.append(error)
    if unreadable and not (options.skip_unreadable and paths):
        more = len(unreadable) - 1
        others = f" {more} more cannot be read." if more else ""
        error = errors.InputError(f"{unreadable[0]}{others}")
        raise error if options.skip_unreadable else images.or_skip(error)
    if unreadable:
        print(f"left out {len(unreadable):,} unreadable images")
        for error in unreadable:
            print(f"  {error}")
    return paths


def invert(options, model, paths, results):
    """Inverts one image after the other: they differ in size, may be many."""
    import keras
    import numpy as np

    from kinv import images, pixels
    from kinv.analysis import diversity, grids

    bar = keras.utils.Progbar(
        len(paths) * (CANDIDATES if options.diverse else 1)
    )
    random = np.random.default_rng(options.seed)
    for index, path in enumerate(paths):
        image = pixels.center_crop(images.read_image(path))[None]
        before = model.logits(image)
        diverse = None
        if options.diverse:
            diverse = diversity.find(
                model,
                image[0],
                options.samples,
                CANDIDATES,
                options.seed,
                bar.add,
            )
            reconstructions, after = diverse.reconstructions, diverse.logits
            # All candidates would fill the memory.
            diverse = diverse._replace(reconstructions=None, logits=None)
        else:
            noise = random.standard_normal(
                (1, options.samples, model.noise_dim), "float32"
            )
            reconstructions = model.reconstruct(image, noise)[0]
            after = model.logits(reconstructions)
        changed = after.argmax(-1) != before.argmax(-1)
        if options.images_out:
            stem = f"{index:05d}-{short_stem(path)}"
            for sample, reconstruction in enumerate(reconstructions):
                images.write_image(
                    pathlib.Path(options.images_out, f"{stem}-{sample}.png"),
                    reconstruction,
                )
        pictures, captions, marked = [], [], [False, *changed]
        if index < MAX_ROWS:
            # At the grid's size: photographs would fill the memory.
            picture = pixels.resize_square(image[0], grids.CELL_SIZE)
            pictures = [picture, *reconstructions]
            captions = [
                describe(row, model.class_names) for row in (*before, *after)
            ]
            for cells in (pictures, captions, marked):
                del cells[1 + MAX_COLUMNS :]
            if options.uncertainty:
                deviation = reconstructions.std(axis=0, ddof=1)
                pictures.append(grids.deviation_map(deviation))
                captions.append(f"mean {deviation.mean():.0f}")
                marked.append(False)
        # In one step: whenever the tool is stopped, results are whole.
        results.append(
            Inverted(
                path,
                before[0],
                1 - changed.mean(),
                diverse,
                pictures,
                captions,
                marked,
            )
        )
        if not options.diverse:
            bar.add(1)


def short_stem(path):
    """The name of a file as text that leaves room in the name of another."""
    text = files.printable(path.stem).encode()[:MAX_STEM_BYTES]
    return text.decode("utf-8", "ignore")


def write(options, model, results):
    """Writes the grid and the logits, and says what was written."""
    import numpy as np

    from kinv import images
    from kinv.analysis import grids

    if options.logits_out:
        write_logits(
            options.logits_out,
            [result.path for result in results],
            np.array([result.logits for result in results]),
            model.class_names,
        )
    columns = [f"noise {sample + 1}" for sample in range(options.samples)]
    del columns[MAX_COLUMNS:]
    if options.uncertainty:
        columns.append(f"deviation, white: {grids.WHITE_DEVIATION} of 255")
    shown = results[:MAX_ROWS]
    grid = grids.captioned_grid(
        [result.pictures for result in shown],
        [result.captions for result in shown],
        [result.marked for result in shown],
        row_captions=[files.printable(result.path.name) for result in shown],
        column_captions=["image", *columns],
    )
    images.write_image(options.out, grids.render(grid))
    agreement = np.mean([result.agreement for result in results])
    print(
        f"same class before and after: {agreement:.1%} of "
        f"{options.samples} reconstructions of {len(results)} images"
    )
    for path, _, _, found, *_ in results:
        if found:
            print(
                f"{files.printable(path.name)}: pictures {found.spread:.0f} of "
                f"255 apart (usual {found.usual_spread:.0f}), logits "
                f"{found.logit_distances.mean():.3g} from the image's (usual "
                f"{found.usual_logit_distance:.3g})"
            )
    if len(results) > MAX_ROWS:
        print(f"the grid holds the first {MAX_ROWS} images")
    if options.samples > MAX_COLUMNS:
        print(f"the grid holds the first {MAX_COLUMNS} reconstructions")
    for output in (options.out, options.images_out, options.logits_out):
        if output:
            print(f"written: {output}")


def describe(logits, class_names):
    """The predicted class and its softmax probability."""
    import numpy as np

    index = logits.argmax()
    probability = 1 / np.exp(logits - logits[index]).sum()
    # The number first, where a long name cannot push it out.
    return f"{probability:.0%} {class_names[index]}"


def write_logits(path, paths, logits, class_names):
    """Writes logits as a table with names, or as an array."""
    import numpy as np

    with files.atomic_path(path) as temporary:
        if pathlib.Path(path).suffix == ".npy":
            np.save(temporary, logits)
            return
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["file", *class_names])
            for path, row in zip(paths, logits, strict=True):
                name = files.printable(path)
                writer.writerow([name, *(f"{value:.6g}" for value in row)])


if __name__ == "__main__":
    errors.run(main)
