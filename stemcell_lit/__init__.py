"""stemcell_lit: do generated patches and a temporal hierarchy help, by how much, is it real?"""
