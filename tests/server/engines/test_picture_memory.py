"""What a picture becomes is charged to its request before it is made, and refused where it is too much."""

from dataclasses import replace

import pytest
from PIL import Image

from covervlm.server.core.caller import ANONYMOUS, Callers, InFlight
from covervlm.server.core.errors import EngineOverloaded, InvalidRequest
from tests.server.engines.gated import running


async def test_pixels_are_charged_before_they_are_made_and_until_the_request_ends(ask, answer, scene):
    async with running() as engine:
        request = ask(scene(0), "What color?", max_tokens=1)
        cost = engine._adapter.cost(request.images[0])
        assert cost.kept == 4 * 3 * 336 * 336
        made, preprocess = [], engine._adapter.preprocess

        def noted(image):
            made.append(memory.bytes)
            return preprocess(image)

        engine._adapter.preprocess = noted
        memory = InFlight(cost.kept + cost.work - 1)
        with Callers(memory=memory).request(ANONYMOUS) as caller, pytest.raises(EngineOverloaded):
            await answer(engine, replace(request, caller=caller))
        assert not made
        memory.limit += 1
        with Callers(memory=memory).request(ANONYMOUS) as caller:
            await answer(engine, replace(request, caller=caller))
            assert memory.bytes == cost.kept
        assert (made, memory.bytes) == ([cost.kept + cost.work], 0)


async def test_a_picture_too_narrow_is_refused_by_its_size_and_by_the_engine_itself(ask, answer):
    async with running() as engine:
        engine.check_image(336, 336)
        with pytest.raises(InvalidRequest, match="1 x 4000"):
            engine.check_image(1, 4000)
        with pytest.raises(InvalidRequest, match="1 x 4000"):
            await answer(engine, ask(Image.new("RGB", (1, 4000)), "What color?", max_tokens=1))
