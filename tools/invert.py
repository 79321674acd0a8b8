"""Shows what a classifier's logits keep of given images.

Example:
    tools/invert.py --model exported/scenes32-robust photo.jpg --out grid.png
"""

import argparse
import contextlib
import csv
import os
import pathlib

from kinv import errors, files


def parse_arguments(argv):
    """Reads the flags."""
    parser = argparse.ArgumentParser(
        description="Reconstruct images from a classifier's logits: each image "
        "beside reconstructions with different noise, and the class before "
        "and after. What changes with the noise, the logits do not hold.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
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
    add("--out", required=True, metavar="FILE", help="grid to write, a PNG")
    add(
        "--samples",
        type=errors.positive_int,
        default=4,
        metavar="NUMBER",
        help="reconstructions per image",
    )
    add("--seed", type=errors.non_negative_int, default=0, help="of the noise")
    add(
        "--rows",
        type=errors.positive_int,
        default=50,
        metavar="IMAGES",
        help="images in the grid at most; the other outputs hold all",
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
    options = parser.parse_args(argv)
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


def main(argv=None):
    """Inverts the images and writes the grid."""
    options = parse_arguments(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import keras
    import numpy as np

    from kinv import images
    from kinv.analysis import grids
    from kinv.serving import pipeline

    paths = [
        path for name in options.images for path in images.list_images(name)
    ]
    for output in (options.out, options.logits_out, options.images_out):
        check_parent(output)
    model = pipeline.Pipeline.load(options.model)
    if options.images_out:
        files.new_directory(options.images_out)

    bar = keras.utils.Progbar(len(paths))
    random = np.random.default_rng(options.seed)
    rows, captions, marked, logits, agreements = [], [], [], [], []
    with contextlib.ExitStack() as stack:
        if options.images_out:
            folder = stack.enter_context(files.atomic_path(options.images_out))
            folder.mkdir()
        # One image at a time: they differ in size and may be many.
        for index, path in enumerate(paths):
            image = images.center_crop(images.read_image(path))[None]
            noise = random.standard_normal(
                (1, options.samples, model.noise_dim), "float32"
            )
            before = model.logits(image)
            reconstructions = model.reconstruct(image, noise)[0]
            after = model.logits(reconstructions)
            changed = after.argmax(-1) != before.argmax(-1)
            logits.append(before[0])
            agreements.append(1 - changed.mean())
            if index < options.rows:
                # At the grid's size: photographs would fill the memory.
                picture = images.resize_square(image[0], grids.CELL_SIZE)
                rows.append([picture, *reconstructions])
                captions.append(
                    [describe(row, model.class_names) for row in before]
                    + [describe(row, model.class_names) for row in after]
                )
                marked.append([False, *changed])
            for sample in range(options.samples if options.images_out else 0):
                images.write_image(
                    folder / f"{index:05d}-{path.stem}-{sample}.png",
                    reconstructions[sample],
                )
            bar.add(1)

        columns = [f"noise {sample + 1}" for sample in range(options.samples)]
        grid = grids.captioned_grid(
            rows,
            captions,
            marked,
            row_captions=[path.name for path in paths[: options.rows]],
            column_captions=["image", *columns],
        )
        images.write_image(options.out, grids.render(grid))
        if options.logits_out:
            write_logits(
                options.logits_out, paths, np.array(logits), model.class_names
            )

    print(
        f"same class before and after: {np.mean(agreements):.1%} of "
        f"{options.samples} reconstructions of {len(paths)} images"
    )
    if len(paths) > options.rows:
        print(f"the grid holds the first {options.rows} images (--rows)")
    for output in (options.out, options.images_out, options.logits_out):
        if output:
            print(f"written: {output}")


def check_parent(path):
    """InputError unless the folder of an output exists."""
    parent = pathlib.Path(path or ".").absolute().parent
    if not parent.is_dir():
        raise errors.InputError(
            f"Expected an existing folder to write {path} to. Received: "
            f"{parent}, which does not exist. Create it first."
        )


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
        with open(temporary, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file", *class_names])
            for path, row in zip(paths, logits, strict=True):
                writer.writerow([path, *(f"{value:.6g}" for value in row)])


if __name__ == "__main__":
    errors.run(main)
