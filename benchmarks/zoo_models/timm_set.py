"""timm: for each of its modules the smallest member of up to eight families, at the smallest input that it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from zoo_models import Entry

# module: (model, pixels, whether the model must be told how many)
MODELS: dict[str, tuple[tuple[str, int, bool], ...]] = {
    "beit": (
        ("beit_base_patch16_224", 64, True),
        ("beitv2_base_patch16_224", 64, True),
    ),
    "byoanet": (
        ("halonet_h1", 256, False),
        ("eca_botnext26ts_256", 64, True),
        ("lambda_resnet26t", 64, False),
        ("haloregnetz_b", 224, False),
        ("botnet26t_256", 64, True),
        ("sehalonet33ts", 256, False),
        ("sebotnet33ts_256", 64, True),
        ("lamhalobotnet50ts_256", 128, True),
    ),
    "byobnet": (
        ("test_byobnet", 64, False),
        ("mobileone_s1", 64, False),
        ("gernet_s", 64, False),
        ("repvgg_a0", 64, False),
        ("regnetz_b16", 64, False),
        ("resnext26ts", 64, False),
        ("eca_resnext26ts", 64, False),
        ("seresnext26ts", 64, False),
    ),
    "cait": (
        ("cait_xxs24_224", 64, True),
        ("cait_xs24_384", 64, True),
        ("cait_s24_224", 64, True),
    ),
    "coat": (
        ("coat_tiny", 64, True),
        ("coat_lite_tiny", 64, True),
        ("coat_mini", 64, True),
    ),
    "convit": (
        ("convit_tiny", 64, True),
        ("convit_small", 64, True),
        ("convit_base", 64, True),
    ),
    "convmixer": (("convmixer_768_32", 64, False),),
    "convnext": (
        ("test_convnext", 64, False),
        ("convnext_zepto_rms", 64, False),
        ("convnextv2_atto", 64, False),
    ),
    "cpubone": (
        ("cpubone_nano", 64, False),
        ("cpubone_t0", 64, False),
        ("cpubone_s0", 64, False),
    ),
    "crossvit": (
        ("crossvit_tiny_240", 240, False),
        ("crossvit_small_240", 240, False),
        ("crossvit_15_240", 240, False),
    ),
    "csatv2": (("csatv2", 64, False),),
    "cspnet": (
        ("cs3darknet_focus_s", 64, False),
        ("darknet17", 64, False),
        ("cspresnext50", 64, False),
        ("sedarknet21", 64, False),
        ("cspresnet50", 64, False),
        ("cspdarknet53", 64, False),
        ("darknetaa53", 64, False),
    ),
    "cspnext": (
        ("cspnext_tiny", 64, False),
        ("cspnext_s", 64, False),
        ("cspnext_m", 64, False),
    ),
    "davit": (
        ("davit_tiny", 64, False),
        ("davit_small", 64, False),
        ("davit_base", 64, False),
    ),
    "deit": (
        ("deit_tiny_patch16_224", 64, True),
        ("deit_tiny_distilled_patch16_224", 64, True),
        ("deit_small_patch16_224", 64, True),
    ),
    "densenet": (
        ("densenet121", 64, False),
        ("tv_densenet121", 64, False),
        ("densenetblur121d", 64, False),
    ),
    "dla": (("dla102x", 64, False),),
    "dpn": (("dpn48b", 64, False),),
    "edgenext": (
        ("edgenext_xx_small", 64, False),
        ("edgenext_x_small", 64, False),
        ("edgenext_small", 64, False),
    ),
    "efficientformer": (("efficientformer_l1", 224, False),),
    "efficientformer_v2": (("efficientformerv2_s0", 64, True),),
    "efficientnet": (
        ("test_efficientnet", 64, False),
        ("mnasnet_small", 64, False),
        ("tinynet_e", 64, False),
        ("semnasnet_050", 64, False),
        ("mobilenet_edgetpu_100", 64, False),
        ("mixnet_s", 64, False),
        ("tf_mixnet_s", 64, False),
        ("mobilenetv1_100", 64, False),
    ),
    "efficientvim": (("efficientvim_m1", 64, False),),
    "efficientvit_mit": (
        ("efficientvit_b0", 64, False),
        ("efficientvit_l1", 64, False),
    ),
    "efficientvit_msra": (("efficientvit_m0", 64, True),),
    "eva": (
        ("vit_tiny_patch16_dinov3_qkvb", 64, True),
        ("eva02_base_patch14_224", 64, True),
        ("vit_pe_spatial_tiny_patch16_512", 64, True),
    ),
    "fasternet": (
        ("fasternet_t0", 64, False),
        ("fasternet_s", 64, False),
        ("fasternet_m", 64, False),
    ),
    "fastvit": (
        ("fastvit_t8", 64, False),
        ("fastvit_s12", 64, False),
        ("fastvit_mci0", 64, False),
    ),
    "focalnet": (
        ("focalnet_tiny_srf", 64, False),
        ("focalnet_tiny_lrf", 64, False),
        ("focalnet_small_srf", 64, False),
    ),
    "gcvit": (
        ("gcvit_xxtiny", 64, True),
        ("gcvit_xtiny", 64, True),
        ("gcvit_tiny", 64, True),
    ),
    "gemma4_vit": (("gemma4_vit_167m", 64, False),),
    "ghostnet": (
        ("ghostnet_050", 64, False),
        ("ghostnetv2_100", 64, False),
    ),
    "hardcorenas": (
        ("hardcorenas_b", 64, False),
        ("hardcorenas_a", 64, False),
        ("hardcorenas_c", 64, False),
    ),
    "hgnet": (
        ("hgnetv2_b0", 64, False),
        ("hgnet_tiny", 64, False),
        ("hgnet_small", 64, False),
    ),
    "hiera": (
        ("hiera_tiny_224", 64, True),
        ("hiera_small_abswin_256", 64, True),
        ("hiera_small_224", 64, True),
    ),
    "hieradet_sam2": (
        ("sam2_hiera_small", 64, False),
        ("hieradet_small", 64, False),
    ),
    "hrnet": (("hrnet_w18_small", 64, False),),
    "iformer": (
        ("iformer_t", 64, False),
        ("iformer_s", 64, False),
        ("iformer_m", 64, False),
    ),
    "inception_next": (
        ("inception_next_atto", 64, False),
        ("inception_next_tiny", 64, False),
        ("inception_next_small", 64, False),
    ),
    "inception_resnet_v2": (
        ("ens_adv_inception_resnet_v2", 96, False),
        ("inception_resnet_v2", 96, False),
    ),
    "inception_v3": (
        ("adv_inception_v3", 96, False),
        ("gluon_inception_v3", 96, False),
        ("inception_v3", 96, False),
        ("tf_inception_v3", 96, False),
    ),
    "inception_v4": (("inception_v4", 96, False),),
    "lcnetv2": (("lcnetv2_small", 64, False),),
    "levit": (
        ("levit_128s", 64, True),
        ("levit_conv_128s", 64, True),
    ),
    "lowformer": (
        ("lowformer_b0", 64, False),
        ("lowformer_e1", 64, False),
    ),
    "mambaout": (
        ("test_mambaout", 64, False),
        ("mambaout_femto", 64, False),
        ("mambaout_kobe", 64, False),
    ),
    "maxxvit": (
        ("test_coatnet", 64, True),
        ("maxvit_pico_rw_256", 64, True),
        ("coatnet_pico_rw_224", 64, True),
        ("coatnext_nano_rw_224", 64, True),
        ("maxxvit_rmlp_nano_rw_256", 64, True),
        ("maxxvitv2_nano_rw_256", 64, True),
    ),
    "metaformer": (
        ("poolformerv2_s12", 64, False),
        ("poolformer_s12", 64, False),
        ("caformer_s18", 64, False),
        ("convformer_s18", 64, False),
    ),
    "mlp_mixer": (
        ("gmlp_ti16_224", 64, True),
        ("gmixer_12_224", 64, True),
        ("resmlp_12_224", 64, True),
        ("mixer_s16_224", 64, True),
    ),
    "mobilenetv3": (
        ("lcnet_035", 64, False),
        ("tf_mobilenetv3_large_minimal_100", 64, False),
        ("mobilenetv3_large_075", 64, False),
        ("fbnetv3_b", 64, False),
    ),
    "mobilenetv5": (("mobilenetv5_base", 64, False),),
    "mobilevit": (
        ("mobilevit_xxs", 64, False),
        ("mobilevitv2_050", 64, False),
        ("mobilevit_xs", 64, False),
    ),
    "mvitv2": (("mvitv2_base", 64, True),),
    "naflexvit": (
        ("naflexvit_base_patch16_gap", 64, False),
        ("naflexvit_so150m2_patch16_reg1_gap", 64, False),
    ),
    "nasnet": (("nasnetalarge", 64, False),),
    "nest": (
        ("jx_nest_tiny", 64, True),
        ("nest_tiny", 64, True),
        ("nest_tiny_jx", 64, True),
    ),
    "nextvit": (
        ("nextvit_small", 64, False),
        ("nextvit_base", 64, False),
        ("nextvit_large", 64, False),
    ),
    "nfnet": (
        ("test_nfnet", 64, False),
        ("nf_regnet_b0", 64, False),
        ("eca_nfnet_l0", 64, False),
        ("nfnet_l0", 64, False),
        ("dm_nfnet_f0", 64, False),
    ),
    "pit": (
        ("pit_ti_224", 64, True),
        ("pit_ti_distilled_224", 64, True),
        ("pit_xs_224", 64, True),
    ),
    "pnasnet": (("pnasnet5large", 64, False),),
    "pvt_v2": (("pvt_v2_b0", 64, False),),
    "rdnet": (
        ("rdnet_tiny", 64, False),
        ("rdnet_small", 64, False),
        ("rdnet_base", 64, False),
    ),
    "regnet": (
        ("regnetx_002", 64, False),
        ("regnety_002", 64, False),
        ("regnetz_005", 64, False),
        ("regnetv_040", 64, False),
    ),
    "repghost": (("repghostnet_050", 64, False),),
    "repvit": (("repvit_m1", 64, False),),
    "res2net": (("res2net50_14w_8s", 64, False),),
    "resnest": (("resnest14d", 64, False),),
    "resnet": (
        ("test_resnet", 64, False),
        ("resnetblur18", 64, False),
        ("ssl_resnet18", 64, False),
        ("swsl_resnet18", 64, False),
        ("ecaresnext26t_32x4d", 64, False),
        ("tv_resnet34", 64, False),
        ("resnetaa34d", 64, False),
        ("ecaresnet101d_pruned", 64, False),
    ),
    "resnetv2": (("resnetv2_101", 64, False),),
    "rexnet": (
        ("rexnet_100", 64, False),
        ("rexnetr_100", 64, False),
    ),
    "selecsls": (("selecsls42", 64, False),),
    "senet": (
        ("legacy_seresnet18", 64, False),
        ("legacy_seresnext26_32x4d", 64, False),
        ("legacy_senet154", 64, False),
    ),
    "sequencer": (("sequencer2d_s", 64, True),),
    "shvit": (("shvit_s1", 64, False),),
    "sknet": (
        ("skresnet18", 64, False),
        ("skresnext50_32x4d", 64, False),
    ),
    "starnet": (("starnet_s050", 64, False),),
    "swiftformer": (
        ("swiftformer_xs", 64, True),
        ("swiftformer_s", 64, True),
        ("swiftformer_l1", 64, True),
    ),
    "swin_transformer": (
        ("swin_tiny_patch4_window7_224", 64, True),
        ("swin_s3_tiny_224", 64, True),
        ("swin_small_patch4_window7_224", 64, True),
    ),
    "swin_transformer_v2": (("swinv2_base_window12to16_192to256", 64, True),),
    "swin_transformer_v2_cr": (("swinv2_cr_base_224", 64, True),),
    "tiny_vit": (("tiny_vit_11m_224", 64, False),),
    "tnt": (
        ("tnt_s_legacy_patch16_224", 64, True),
        ("tnt_s_patch16_224", 64, True),
        ("tnt_b_patch16_224", 64, True),
    ),
    "tresnet": (
        ("tresnet_m", 64, False),
        ("tresnet_v2_l", 64, False),
        ("tresnet_m_miil_in21k", 64, False),
    ),
    "twins": (
        ("twins_svt_small", 64, True),
        ("twins_pcpvt_small", 64, True),
        ("twins_pcpvt_base", 64, True),
    ),
    "vgg": (("vgg11", 64, False),),
    "visformer": (
        ("visformer_tiny", 64, True),
        ("visformer_small", 64, True),
    ),
    "vision_transformer": (
        ("test_vit", 64, True),
        ("vit_tiny_patch16_224", 64, True),
        ("flexivit_small", 64, True),
        ("beit3_base_patch16_224", 64, True),
    ),
    "vision_transformer_hybrid": (
        ("vit_tiny_r_s16_p8_224", 64, True),
        ("vit_small_r26_s32_224", 64, True),
        ("vit_small_resnet50d_s16_224", 64, True),
    ),
    "vision_transformer_relpos": (
        ("test_vit_relpos", 64, True),
        ("vit_srelpos_small_patch16_224", 64, True),
        ("vit_relpos_small_patch16_rpn_224", 64, True),
    ),
    "vision_transformer_sam": (("samvit_base_patch16_224", 64, True),),
    "vitamin": (
        ("vitamin_small_224", 64, True),
        ("vitamin_base_224", 64, True),
    ),
    "volo": (("volo_d1_224", 64, True),),
    "vovnet": (
        ("ese_vovnet19b_slim_dw", 64, False),
        ("vovnet39a", 64, False),
        ("eca_vovnet39b", 64, False),
    ),
    "xception": (
        ("legacy_xception", 64, False),
        ("xception", 64, False),
    ),
    "xception_aligned": (("xception41p", 64, False),),
    "xcit": (
        ("xcit_nano_12_p16_224", 64, True),
        ("xcit_tiny_12_p16_224", 64, True),
        ("xcit_small_12_p16_224", 64, True),
    ),
}


def entries() -> list[Entry]:
    """All of them."""
    import timm

    def build(name: str, options: dict[str, Any]) -> Callable[[], nn.Module]:
        return lambda: timm.create_model(name, pretrained=False, **options)

    return [
        Entry(
            name=name,
            build=build(name, {"img_size": pixels} if told else {}),
            inputs=lambda pixels=pixels: torch.randn(2, 3, pixels, pixels),  # type: ignore[misc]
        )
        for module in MODELS.values()
        for name, pixels, told in module
    ]
