"""Renders the demo clip: python demo/make_clip.py.

Its true flow is scenes.true_flow(scene, times[i], times[j]) of scenes.demo_clip().
"""

from pathlib import Path

import av
from scenes import Scene, demo_clip

PATH = Path(__file__).resolve().parent / "tokenflow_star.mp4"
FRAMES_PER_SECOND = 12


def write(
    path: Path, scene: Scene, times: list[float], size: int = 128, preset: str = "veryslow"
) -> None:
    """Renders a scene at these times into an H.264 video.

    Args:
        path: The file.
        scene: The scene.
        times: Of the frames.
        size: Height and width in pixels.
        preset: What H.264's encoder calls how hard it tries.
    """
    with av.open(str(path), "w") as file:
        # 4:2:0 although it halves the colours' resolution: not every browser shows 4:4:4.
        stream = file.add_stream(
            "libx264", FRAMES_PER_SECOND, options={"crf": "6", "preset": preset}
        )
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        for t in times:
            picture = (scene.render(t, size).movedim(0, -1) * 255).round().byte().contiguous()
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture.numpy(), "rgb24")))
        file.mux(stream.encode())


if __name__ == "__main__":
    write(PATH, *demo_clip())
    print(PATH, demo_clip()[0].caption())
